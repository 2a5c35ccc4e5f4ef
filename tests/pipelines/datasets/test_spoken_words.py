"""The clips of words and of melodies: as many voices as promised, none in both splits, all a second long."""

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from tftoolkit import pipelines
from tftoolkit.pipelines.datasets import spoken_words


def few(monkeypatch: pytest.MonkeyPatch, *voices: str) -> None:
    monkeypatch.setattr(spoken_words, "_TRAIN_VOICES", voices)
    monkeypatch.setattr(spoken_words, "_TEST_VOICES", ("f1",))


def clips(folder: Path, split: str) -> dict[str, bytes]:
    found = {}
    for path in sorted((folder / split).glob("*/*.wav")):
        with wave.open(str(path), "rb") as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 8000)
            found[f"{path.parent.name}/{path.name}"] = file.readframes(8000)
    return found


def test_melodies_differ_and_are_told_apart_by_their_tones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few(monkeypatch, "m1", "m2")
    folder = spoken_words.prepare(tmp_path, tones=True)
    assert spoken_words.prepare(tmp_path, tones=True) == folder
    train, test = clips(folder, "train"), clips(folder, "test")
    assert (len(train), len(test)) == (8 * 2 * 2, 8 * 2)
    assert len({*train.values(), *test.values()}) == 48
    source = pipelines.sources.audio(folder / "train", frames=8000)
    assert source.classes == spoken_words.MELODIES
    batch = next(iter(pipelines.Pipeline(source).batch(4)))
    assert batch["waveform"].shape == (4, 8000)
    assert float(np.abs(batch["waveform"]).max()) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_voices_that_espeak_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few(monkeypatch, "adam", "nobody", "nobody_else")
    folder = spoken_words.prepare(tmp_path)
    train = clips(folder, "train")
    assert len(set(train.values())) == len(train) == 8 * 2 * 2  # of both nobodies together one
    few(monkeypatch, *(f"nobody{i}" for i in range(9)))
    with pytest.raises(spoken_words.MissingVoicesError, match="only some of the voices"):
        spoken_words.prepare(tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.wav"))


def test_without_espeak_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(spoken_words.MissingVoicesError, match="apt install espeak-ng"):
        spoken_words.prepare(tmp_path)
    assert not list(tmp_path.rglob("*.wav"))
