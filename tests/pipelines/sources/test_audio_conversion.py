"""WAV headers of every kind, as programs write them to files and to pipes; resampling and mixing down."""

import functools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, SourceError, audio, sources

soundfile = pytest.importorskip("soundfile")
signal = pytest.importorskip("scipy.signal")

TONE = (0.5 * np.sin(np.arange(800) / 5)).astype(np.float32)
PCM = np.round(TONE * 32768).astype("<i2")
UNKNOWN = [0, 0x7FFFF000, 0x7FFFF024, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def chunk(name: bytes, body: bytes, told: int | None = None, endian: str = "<") -> bytes:
    return name + struct.pack(endian + "I", len(body) if told is None else told) + body + b"\0" * (len(body) % 2)


def wav(
    *, riff: int | None = None, data: int | None = None, before: bytes = b"", behind: bytes = b"", kind: bytes = b"RIFF"
) -> bytes:
    """A mono file of 16 bits, with the sizes in its header as given."""
    endian = ">" if kind == b"RIFX" else "<"
    form = struct.pack(endian + "HHIIHH", 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + before + chunk(b"fmt ", form, endian=endian)
    body += chunk(b"data", PCM.astype(endian + "i2").tobytes(), data, endian) + behind
    return chunk(kind, body, riff, endian)


def fetched(path: Path, **options: Any) -> np.ndarray:
    source = sources.audio(path, **options)
    rows = source.fetch(tf.constant([0], tf.int64))["waveform"]
    waveform = rows[0].numpy()
    assert options or source.lengths("waveform").tolist() == [len(waveform)]
    return waveform


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


LIST = chunk(b"LIST", b"INFOISFT\x05\0\0\0some\0")
WHOLE = {
    **{f"data {size:x}": wav(data=size) for size in UNKNOWN},
    **{f"RIFF {size:x}": wav(riff=size) for size in (*UNKNOWN, len(wav()), len(wav()) - 16, 4)},
    **{f"both {size:x}": wav(riff=size, data=size) for size in UNKNOWN},
    "SoX to a pipe": wav(riff=0x7FFFF024, data=0x7FFFF000),
    "ffmpeg to a pipe": wav(riff=0xFFFFFFFF, data=0xFFFFFFFF, before=LIST),
    "a list before, data 0": wav(riff=0, data=0, before=LIST + chunk(b"odd ", b"x")),
    "a list behind": wav(behind=LIST),
    "RIFX": wav(kind=b"RIFX"),
    "RIFX, both 0": wav(kind=b"RIFX", riff=0, data=0),
    "RF64": wav(
        kind=b"RF64", riff=0xFFFFFFFF, data=0xFFFFFFFF, before=chunk(b"ds64", struct.pack("<QQQI", 1664, 1600, 800, 0))
    ),
    "RF64 to a pipe": wav(kind=b"RF64", riff=0xFFFFFFFF, data=0xFFFFFFFF, before=chunk(b"ds64", bytes(28))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_t7_sound_reaches_to_the_end_where_the_header_does_not_know(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.wav", WHOLE[name])
    np.testing.assert_array_equal(fetched(path), PCM / np.float32(32768))
    np.testing.assert_array_equal(fetched(path, frames=300), PCM[:300] / np.float32(32768))


@pytest.mark.parametrize(
    "content",
    [
        wav()[:-800],
        wav(data=3200),
        wav(riff=0, data=1602),
        wav(riff=0xFFFFFFFF, data=0x10000000),
        wav(
            kind=b"RF64",
            riff=0xFFFFFFFF,
            data=0xFFFFFFFF,
            before=chunk(b"ds64", struct.pack("<QQQI", 0, 1 << 32, 0, 0)),
        ),
        wav(kind=b"RIFX", data=3200),
        wav()[:40],
        wav()[:30],
        wav(before=chunk(b"LIST", b"x" * 100))[:100],
    ],
)
def test_t7_sound_that_the_file_does_not_hold_is_truncated(tmp_path: Path, content: bytes) -> None:
    whole, cut = written(tmp_path / "1.wav", wav()), written(tmp_path / "2.wav", content)
    source = sources.audio([whole, cut])
    assert len(source.fetch(tf.constant([0], tf.int64))["waveform"][0]) == 800
    with pytest.raises(SourceError, match=rf"{cut} is truncated: it has"):
        source.fetch(tf.constant([1], tf.int64))
    p = Pipeline(source, on_error="skip", max_skipped=0.5).batch(2, padded=True)
    assert next(iter(p))["path"].numpy().tolist() == [b"1.wav"]


def test_t7_silence_is_no_end_and_empty_is_empty(tmp_path: Path) -> None:
    silent = written(tmp_path / "a.wav", wav(riff=0, data=0)[:44] + bytes(1600))
    np.testing.assert_array_equal(fetched(silent), np.zeros(800))
    empty = wav()[:40] + bytes(4)
    for content in (empty, empty + LIST):
        assert fetched(written(tmp_path / "b.wav", content)).shape == (0,)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"]
)
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64"])
def test_t7_every_encoding_through_a_pipe(tmp_path: Path, form: str, subtype: str) -> None:
    path = tmp_path / "a.wav"
    try:
        soundfile.write(path, np.stack([TONE, -TONE], 1), 8000, subtype=subtype, format=form)
    except (ValueError, soundfile.LibsndfileError):
        pytest.skip("no such file")
    content = path.read_bytes()
    expected = fetched(path)
    np.testing.assert_array_equal(expected, soundfile.read(path, dtype="float32")[0])
    at = content.index(b"data") + 4
    for size in (0, 0xFFFFFFFF):
        path.write_bytes(content[:at] + struct.pack("<I", size) + content[at + 4 :])
        found = fetched(path)
        assert len(found) in (len(expected), len(expected) + len(found) - 800)
        np.testing.assert_array_equal(found[:800], expected[:800])


def test_t7_flac_without_a_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, TONE, 8000)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # the number of samples
    with pytest.raises(SourceError, match=r"a.flac: its header does not say how long it is.*encode it again"):
        sources.audio(written(path, bytes(content)))


def sound(path: Path, rate: int, channels: int, frames: int) -> np.ndarray:
    samples = np.random.default_rng(rate + channels).uniform(-0.5, 0.5, [frames, channels]).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return samples


@pytest.fixture
def mixed(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Files of different rates and channels in two classes, and what they shall become at 16 kHz."""
    kinds = {
        "a/1.wav": (16000, 1, 700),
        "a/2.wav": (44100, 2, 3000),
        "b/3.wav": (8000, 1, 501),
        "b/4.wav": (48000, 6, 1),
    }
    expected = {}
    for name, (rate, channels, frames) in kinds.items():
        samples = sound(tmp_path / name, rate, channels, frames).mean(1, dtype=np.float64)
        common = np.gcd(rate, 16000)
        expected[name] = signal.resample_poly(samples, 16000 // common, rate // common)
    return tmp_path, expected


def test_t10_files_of_all_rates_and_channels_come_in_one(mixed: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, expected = mixed
    source = sources.audio(folder, channels=1, sample_rate=16000)
    assert (source.sample_rate, source.classes) == (16000, ("a", "b"))
    assert source.element_spec["waveform"] == tf.TensorSpec([None], tf.float32)
    rows = source.fetch(tf.range(4, dtype=tf.int64))
    for name, waveform, length in zip(expected, rows["waveform"], source.lengths("waveform"), strict=True):
        assert length == len(waveform)
        np.testing.assert_allclose(waveform, expected[name], atol=1e-6, err_msg=name)
    assert source.fingerprint()["sample_rate"] == 16000
    stereo = sources.audio(folder / "a" / "*.wav", channels=2, sample_rate=16000)
    assert stereo.element_spec["waveform"] == tf.TensorSpec([None, 2], tf.float32)
    first = stereo.fetch(tf.constant([0], tf.int64))["waveform"][0].numpy()
    np.testing.assert_array_equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize("rate", [16000, 22050, 8000, 44100, 4000])
def test_t10_pieces_are_the_same_samples_bit_for_bit(mixed: tuple[Path, dict[str, np.ndarray]], rate: int) -> None:
    folder, _ = mixed
    whole = sources.audio(folder, channels=1, sample_rate=rate)
    pieces = sources.audio(folder, channels=1, sample_rate=rate, frames=97)
    rows = whole.fetch(tf.range(len(whole), dtype=tf.int64))["waveform"]
    expected = [row[i : i + 97].numpy() for row in rows for i in range(0, len(row) - 96, 97)]
    np.testing.assert_array_equal(pieces.fetch(tf.range(len(pieces), dtype=tf.int64))["waveform"], expected)


def test_t10_the_filter_is_that_of_the_stage(tmp_path: Path) -> None:
    samples = sound(tmp_path / "a.wav", 44100, 1, 2000)[:, 0]
    stage = audio.resample(44100, 16000).over_rows({"waveform": tf.constant(samples[np.newaxis])})
    np.testing.assert_allclose(fetched(tmp_path / "a.wav", sample_rate=16000), stage["waveform"][0], atol=2e-6)


def test_t10_what_cannot_be_mixed_is_named(mixed: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = mixed
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: sources.audio(folder), r"2.wav has 44100 Hz and not 16000 like .*1.wav; give sample_rate=16000"),
        (lambda: sources.audio(folder, sample_rate=16000), r"2.wav has 2 channels, .*; give channels=1"),
        (lambda: sources.audio(folder, sample_rate=16000, channels=2), r"channels=2: .*4.wav has 6; only one"),
        (lambda: sources.audio(folder, channels=0), "channels=0: expected a positive integer"),
    ]
    for attempt, message in refused:
        with pytest.raises(ValueError, match=message):
            attempt()


def test_t8_classes_of_another_split_number_the_labels(mixed: tuple[Path, dict[str, np.ndarray]]) -> None:
    folder, _ = mixed
    make = functools.partial(sources.audio, folder, channels=1, sample_rate=8000)
    source = make(classes=["c", "b", "a"])
    assert source.fetch(tf.range(4, dtype=tf.int64))["label"].numpy().tolist() == [2, 2, 1, 1]
    with pytest.raises(ValueError, match=r"classes: the folder .*b is none of them"):
        make(classes=["a"])
    saved = Pipeline(source).batch(2).state()
    with pytest.raises(ValueError, match=r"source\.classes"):
        Pipeline(make()).batch(2).restore(saved)
    with pytest.raises(ValueError, match="classes: only a folder with a folder per class has them"):
        sources.audio(folder / "a" / "1.wav", classes=["a"])
