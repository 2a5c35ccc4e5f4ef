"""The audio source on real sound files: WAV, FLAC and OGG, whole and in part, damaged and cut off."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, sources

soundfile = pytest.importorskip("soundfile")

RATE = 8000


def sound(path: Path, frames: int, channels: int = 1, rate: int = RATE, subtype: str | None = None) -> np.ndarray:
    """Writes a tone and returns its samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(np.arange(frames) / 5)[:, np.newaxis] * np.linspace(0.3, 0.6, channels)
    samples = (tone if channels > 1 else tone[:, 0]).astype(np.float32)
    soundfile.write(path, samples, rate, subtype=subtype)
    return samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sound(tmp_path / "a" / "1.wav", 1000)
    sound(tmp_path / "a" / "2.flac", 1500)
    sound(tmp_path / "b" / "3.wav", 900, subtype="FLOAT")
    sound(tmp_path / "b" / "4.ogg", 4000)
    return tmp_path


def test_a_folder_per_class(folder: Path) -> None:
    source = sources.audio(folder)
    assert (source.sample_rate, source.classes, len(source)) == (RATE, ("a", "b"), 4)
    assert source.element_spec["waveform"] == tf.TensorSpec([None], tf.float32)
    assert source.lengths("waveform").tolist() == [1000, 1500, 900, 4000]
    rows = source.fetch(tf.constant([3, 0, 2, 1], tf.int64))
    assert rows["label"].numpy().tolist() == [1, 0, 1, 0]
    assert rows["path"].numpy().tolist() == [b"b/4.ogg", b"a/1.wav", b"b/3.wav", b"a/2.flac"]
    tone = np.sin(np.arange(4000) / 5).astype(np.float32) * np.float32(0.3)
    for waveform, tolerance in zip(rows["waveform"], [0.05, 1 / 32768, 1e-7, 1 / 32768], strict=True):  # OGG is lossy
        np.testing.assert_allclose(waveform, tone[: len(waveform)], atol=tolerance)


def test_channels_come_last(tmp_path: Path) -> None:
    samples = sound(tmp_path / "stereo.wav", 50, channels=2, subtype="FLOAT")
    source = sources.audio(tmp_path / "stereo.wav", sample_rate=RATE)
    assert source.element_spec["waveform"] == tf.TensorSpec([None, 2], tf.float32)
    np.testing.assert_array_equal(source.fetch(tf.constant([0], tf.int64))["waveform"][0], samples)


def test_pieces_are_the_same_samples(folder: Path) -> None:
    whole = sources.audio(folder / "a" / "*.*")
    pieces = sources.audio(folder / "a" / "*.*", frames=400)
    assert len(pieces) == 2 + 3
    assert pieces.element_spec["waveform"] == tf.TensorSpec([400], tf.float32)
    assert pieces.describe(3) == f"{folder / 'a' / '2.flac'}, from frame 400"
    expected = [whole.fetch(tf.constant([i], tf.int64))["waveform"][0].numpy() for i in range(2)]
    expected = [one[start : start + 400] for one in expected for start in range(0, len(one) - 399, 400)]
    np.testing.assert_array_equal(pieces.fetch(tf.range(5, dtype=tf.int64))["waveform"], expected)


def test_a_pipeline_resumes(folder: Path) -> None:
    p = Pipeline(sources.audio(folder, frames=300), seed=1).shuffle().batch(4)
    whole = [batch["waveform"].numpy() for batch in p.dataset(epochs=2)]
    for one, other in zip(p.dataset(3, epochs=2), whole[3:], strict=True):
        np.testing.assert_array_equal(one["waveform"], other)


@pytest.mark.parametrize("name", ["a/1.wav", "a/2.flac", "b/3.wav", "b/4.ogg"])
def test_a_file_that_was_cut_off_costs_one_example(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for size in {0, 3, 40, len(content) // 2, len(content) - 100, len(content) - 1}:
        (folder / name).write_bytes(content[:size])
        source = sources.audio(folder)
        index = ["a/1.wav", "a/2.flac", "b/3.wav", "b/4.ogg"].index(name)
        for i in range(4):
            if i == index:
                with pytest.raises(SourceError, match=str(folder / name)):
                    source.fetch(tf.constant([i], tf.int64))
            else:
                source.fetch(tf.constant([i], tf.int64))


def test_bad_input_is_named(folder: Path, tmp_path: Path) -> None:
    sound(folder / "b" / "5.wav", 100, rate=4000)
    with pytest.raises(ValueError, match=r"5.wav has 4000 Hz and not 8000 like .*1.wav"):
        sources.audio(folder)
    sound(folder / "b" / "5.wav", 100, channels=2)
    with pytest.raises(ValueError, match=r"5.wav has 2 channels, but .*1.wav has 1"):
        sources.audio(folder)
    with pytest.raises(ValueError, match="frames=5000: no file is as long; the longest has 1500"):
        sources.audio(folder / "a" / "*.*", frames=5000)
    with pytest.raises(ValueError, match="frames=0: expected a positive integer"):
        sources.audio(folder, frames=0)
    (folder / "noise.wav").write_bytes(b"no sound")
    with pytest.raises(SourceError, match=r"noise.wav cannot be read as a sound file"):
        sources.audio(folder / "noise.wav")
