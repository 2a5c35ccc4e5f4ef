"""A run of six steps that goes on for six more ends with the same bits as one of twelve, for jobs of every kind."""

from pathlib import Path

import numpy as np
import pytest

from tftoolkit import jobs, trainers
from tftoolkit.jobs import job as scaffold
from tftoolkit.pipelines.datasets import spoken_words
from tftoolkit.trainers import recipes

SCHEDULE = {
    "steps": 12,
    "runner": "graph",
    **dict.fromkeys(("steps_per_call", "log_every"), 3),
    **dict.fromkeys(("evaluate_every", "checkpoint_every"), 6),
}
# The other kinds, digits and texts, have tests of their own.
TINY = {
    "audio": {"batch_size": 8, "model.width": 2},
    "detect": {"batch_size": 2, "model.width": 4, "scene_size": 32, "most": 1, "train_scenes": 9, "test_scenes": 2},
    "gan": {"batch_size": 8, "critic_steps": 2, "generator": (8,), "critic": (8,)},
    "tabular_diabetes": {"batch_size": 8, "model.hidden": (4,)},
    "transfer": {"model.width": 2, "classes": 2, "shots": 4, "pretraining.steps": 4, "scratch.steps": 4},
}
SLOW = {"gan", "tabular_diabetes"}  # the cheap ones


@pytest.fixture
def few_voices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spoken_words, "_PROGRAM", "no-such-program")
    monkeypatch.setattr(spoken_words, "_TRAIN_VOICES", ("m1",))
    monkeypatch.setattr(spoken_words, "_TEST_VOICES", ("f1",))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))


def trained(name: str, directory: Path, steps: int) -> dict[str, np.ndarray]:
    """The step's variables after so many steps, in a trainer that begins with the directory's checkpoint."""
    config = recipes.load(name)
    config.update_from_flattened_dict({**SCHEDULE, **TINY[name]})
    if "warmup_steps" in config:
        config.warmup_steps = 2
    job = jobs.find(config.job)(config)
    job.directory = directory
    job.read()
    job.prepare()
    step = job.step()
    scaffold._trainer(job, step, directory).run(steps)
    return {name: variable.numpy() for name, variable in step.named_variables().items()}


@pytest.mark.usefixtures("few_voices")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.exhaustive) for name in TINY]
)
def test_a_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = trained(name, tmp_path / "whole", 12)
    if name == "transfer":  # whose first run within, of 4 steps, is over when its second one fails
        with trainers.faults.inject("step", at=6), pytest.raises(trainers.faults.FaultError):
            trained(name, tmp_path / "parts", 6)
        assert (tmp_path / "parts/pretrained.safetensors").exists()
        assert not (tmp_path / "parts/scratch.json").exists()
    half = trained(name, tmp_path / "parts", 6)
    parts = trained(name, tmp_path / "parts", 12)
    assert whole.keys() == parts.keys()
    assert all((whole[key] == parts[key]).all() for key in whole)
    assert any((whole[key] != half[key]).any() for key in whole)
