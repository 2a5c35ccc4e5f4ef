"""Failures on purpose: where they strike, and what is left after them."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines, trainers
from tftoolkit.trainers import faults


class Line(trainers.Step):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.zeros([64]))
        self.update = trainers.Update([self.w], trainers.optimizers.Sgd(0.01))

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(batch["x"] * self.w - batch["y"]))
        self.update.apply([tape.gradient(loss, self.w)], [self.w])
        return {"loss": loss}


def _trainer(directory, **options):
    x = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    pipeline = pipelines.Pipeline(pipelines.sources.arrays({"x": x, "y": 3 * x})).batch(4)
    options = {"runner": "graph", "checkpoint_every": 5, "log_every": 2, "evaluate": lambda: {"a": 1}, **options}
    return trainers.Trainer(Line(), pipeline, directory, **options)


def test_a_fault_strikes_when_its_point_is_passed_for_the_nth_time():
    with faults.inject("step", at=3):
        faults.passing("step")
        faults.passing("data")
        faults.passing("step")
        with pytest.raises(faults.FaultError, match="'step'"):
            faults.passing("step")
        faults.passing("step")  # once
    with faults.inject("step"):
        pass
    faults.passing("step")  # over


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Twelve steps, by the number of steps between evaluations: the folder, and the weights at the end."""

    @functools.cache
    def train(evaluate_every=None):
        trainer = _trainer(tmp_path_factory.mktemp("undisturbed"), evaluate_every=evaluate_every)
        trainer.run(12)
        return Path(trainer.directory), trainer.step.w.numpy()

    return train


POINTS = {"data": (8, [5]), "step": (8, [5]), "save": (2, [5]), "manifest": (2, [5]), "evaluate": (1, [5, 10])}


@pytest.mark.parametrize(
    ("point", "asynchronous"),
    [
        pytest.param(point, asynchronous, marks=pytest.mark.slow if asynchronous == (number % 2 == 0) else ())
        for number, point in enumerate(POINTS)
        for asynchronous in (False, True)
    ],
)
def test_every_point_is_passed_and_nothing_is_lost(tmp_path, undisturbed, point, asynchronous):
    at, left = POINTS[point]
    trainer = _trainer(tmp_path, async_checkpoints=asynchronous)
    with faults.inject(point, at=at), pytest.raises(faults.FaultError):
        trainer.run(12)
    assert trainers.Checkpointer(tmp_path / "checkpoints").steps() == left
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    again = _trainer(tmp_path)
    again.run(12)
    expected, weights = undisturbed()
    np.testing.assert_array_equal(again.step.w.numpy(), weights)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("text", "code"), [("save:kill:2", -signal.SIGKILL), ("save:terminate", -signal.SIGTERM), ("data:raise", 0)]
)
def test_faults_from_the_environment(text, code):
    program = "from tftoolkit.trainers import faults\nfor i in range(2): faults.passing('save')"
    environment = {**os.environ, faults.VARIABLE: text, "TF_CPP_MIN_LOG_LEVEL": "2"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == code


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("stop",), "data, step"), (("data", "crash"), "kill, terminate"), (("data", "kill", 0), "counts from 1")],
)
def test_bad_faults_are_named(arguments, named):
    with pytest.raises(ValueError, match=named), faults.inject(*arguments):
        pass
    with pytest.raises(ValueError, match="point:action:number"):
        faults._from_environment("save:kill:soon")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB of its own; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("asynchronous", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk(small_disk, asynchronous):
    """What was saved before stays, and when there is room again the run goes on from it."""
    trainer = _trainer(small_disk, async_checkpoints=asynchronous, log_every=1000)
    trainer.run(6)
    saved = trainers.Checkpointer(small_disk / "checkpoints").steps()
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes(free.f_bavail * free.f_bsize - 4096))
    with pytest.raises(trainers.CheckpointError, match=r"can't be written.*(No space left|space)"):
        _trainer(small_disk, async_checkpoints=asynchronous, log_every=1000).run(20)
    assert trainers.Checkpointer(small_disk / "checkpoints").steps() == saved
    ballast.unlink()
    again = _trainer(small_disk, log_every=1000)
    again.run(20)
    assert again.finished_steps == 20


def test_sigterm_in_an_evaluation_saves_and_the_run_goes_on(tmp_path):
    with faults.inject("evaluate", "terminate"), pytest.raises(trainers.TrainingTerminated, match="saved step 4"):
        _trainer(tmp_path, evaluate_every=4).run(9)
    assert trainers.Checkpointer(tmp_path / "checkpoints").steps() == [4]
    again = _trainer(tmp_path, evaluate_every=4).run(9)
    assert again.steps == 9
    assert Path(tmp_path / "metrics.jsonl").read_text().count('"eval"') == 3


@pytest.mark.slow
def test_sigterm_before_an_evaluation_leaves_it_for_the_next_run(tmp_path):
    with faults.inject("step", "terminate", at=4), pytest.raises(SystemExit) as caught:
        _trainer(tmp_path, evaluate_every=4).run(9)
    assert caught.value.code == 75
    assert "eval" not in Path(tmp_path / "metrics.jsonl").read_text()
    _trainer(tmp_path, evaluate_every=4).run(9)
    _trainer(tmp_path / "undisturbed", evaluate_every=4).run(9)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "undisturbed/metrics.jsonl").read_bytes()
