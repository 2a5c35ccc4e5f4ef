"""Spoken words, and the melodies that take their place: said, learned, and kept by the run that was begun on them."""

import json
from pathlib import Path

import numpy as np
import pytest

from tftoolkit import jobs, pipelines
from tftoolkit.cli.data import open_pipeline
from tftoolkit.jobs import job as job_module
from tftoolkit.jobs.audio_classification import AudioClassification
from tftoolkit.pipelines.datasets import spoken_words
from tftoolkit.trainers import recipes


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the clips of few voices; espeak-ng is not found."""
    monkeypatch.setattr(spoken_words, "_TRAIN_VOICES", ("m1", "m2", "m3"))
    monkeypatch.setattr(spoken_words, "_TEST_VOICES", ("f1",))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(spoken_words, "_PROGRAM", "no-such-program")
    return tmp_path / "data"


def begun(directory: Path) -> AudioClassification:
    config = recipes.load("audio")
    config.steps, config.batch_size, config.model.width, config.warmup_steps = 4, 16, 4, 1
    config.steps_per_call = config.log_every = config.evaluate_every = config.checkpoint_every = 2
    config.exports, config.max_drop = ("saved_model",), 1.0
    job = AudioClassification(config)
    job.directory = directory
    return job


def words(data: Path) -> Path:
    """Stands for what espeak-ng would have spoken."""
    folder = data / "spoken_words/1.0.0"
    for split in ("train", "test"):
        for word, melody in zip(spoken_words.WORDS, spoken_words.MELODIES, strict=True):
            folder.joinpath(split).mkdir(parents=True, exist_ok=True)
            folder.joinpath(split, word).symlink_to(data / "tones/1.1.0" / split / melody)
    return folder


@pytest.mark.slow
def test_where_there_are_no_words_melodies_are_learned_and_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = begun(tmp_path / "run")
    job.read()
    assert "Melodies of three tones in place of words, since espeak-ng, which speaks" in capsys.readouterr().out
    job_module._trainer(job, job.step(), tmp_path / "run").run(2)
    folder = words(data)
    jobs.run(begun(tmp_path / "run"), tmp_path / "run")
    assert "Melodies of three tones, on which this run was begun" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert "melody_" in (tmp_path / "run/report.html").read_text()
    other = begun(tmp_path / "other")
    other.read()
    assert other.folder == folder
    assert "Melodies" not in capsys.readouterr().out


def test_a_run_that_was_begun_on_words_does_not_go_on_with_melodies(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(
        spoken_words.MissingVoicesError, match=r"run was begun on words\. They are not in .*install it, or begin a run"
    ):
        begun(tmp_path / "run").read()
    assert not (tmp_path / "run/melodies").exists()


def test_its_pipeline_can_be_had_without_a_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = next(iter(open_pipeline("audio")))
    assert batch["spectrogram"].shape == (32, 63, 40)
    assert "Melodies of three tones in place of words" in capsys.readouterr().out


def test_the_pipelines_of_words_and_melodies_are_not_taken_for_each_other(data: Path) -> None:
    melodies = spoken_words.prepare(data, tones=True)
    prints = [pipelines.sources.audio(one / "train").fingerprint() for one in (melodies, words(data))]
    assert prints[0] != prints[1]
