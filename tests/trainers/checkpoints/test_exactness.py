"""Killed anywhere and run again, the result is bit for bit that of the undisturbed run.

Compared are all variables (weights, optimizer, average, random state), the metrics file (which has the order of the
data in it), and which checkpoint is kept as the best. TFTOOLKIT_SEED=NUMBER repeats the moments of another time.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tftoolkit import trainers

POINTS = ["save", "manifest", "evaluate", "data", "step"]


@pytest.fixture(scope="module")
def trainings(trainings_of):
    with trainings_of(Path(__file__).parents[1] / "exact.py") as server:
        yield server


def _assert_same(trainings, found, expected):
    trainings.assert_same(found, expected)
    folders = [trainings.folder / name / "checkpoints" for name in (found, expected)]
    best = [trainers.Checkpointer(folder).best_step() for folder in folders]
    assert best[0] == best[1]
    assert not list(folders[0].glob(".tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", pytest.param("fused", marks=pytest.mark.exhaustive)])
def test_killed_at_every_point(trainings, kind):
    expected, found, job = f"{kind}-expected", f"{kind}-found", {"kind": kind, "runner": "xla_chunk", "steps": 130}
    assert trainings.run(expected, **job) == 0
    for point, at in (("evaluate", 1), ("save", 2), ("manifest", 2), ("data", 2), ("step", 3)):
        assert trainings.run(found, fault=[point, "kill", at], **job) == -signal.SIGKILL
    assert not (trainings.folder / f"{found}.npz").exists()
    assert trainings.run(found, **job) == 0
    _assert_same(trainings, found, expected)


def _kill_at_random_moments(trainings, seed, kind, runner, steps, kills):
    """Every third at one of the trainer's points, which random moments seldom hit."""
    job = {"kind": kind, "runner": runner, "steps": steps}
    expected, found = (f"{kind}-{runner}-{kills}-{name}" for name in ("expected", "found"))
    trainings.begin(expected, **job)
    trainings.wait_for("pid")
    begin = time.monotonic()
    assert trainings.wait_for("codes") == 0
    seconds = time.monotonic() - begin
    draw = random.Random(f"{seed} {kind} {runner}")
    for number in range(kills):
        if number % 3 == 0:
            fault = [draw.choice(POINTS), "kill", draw.randint(1, 2)]
            assert trainings.run(found, fault=fault, **job) == -signal.SIGKILL
            continue
        trainings.begin(found, **job)
        process = trainings.wait_for("pid")
        time.sleep(draw.uniform(0, seconds / kills))
        os.kill(process, signal.SIGKILL)
        assert trainings.wait_for("codes") == -signal.SIGKILL, "it finished too early to be killed"
    assert not (trainings.folder / f"{found}.npz").exists()
    assert trainings.run(found, **job) == 0
    _assert_same(trainings, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "runner", "steps", "kills"),
    [
        ("module", "xla_chunk", 1500, 8),
        ("module", "eager", 150, 4),
        ("keras", "graph", 400, 2),
        ("tf_keras", "xla", 400, 2),
    ],
)
def test_killed_at_random_moments(trainings, random_seed, kind, runner, steps, kills):
    """16 kills in all, at other moments each time."""
    _kill_at_random_moments(trainings, random_seed, kind, runner, steps, kills)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "runner", "steps", "kills"),
    [
        ("module", "eager", 300, 8),
        ("module", "graph", 1500, 8),
        ("module", "xla", 1500, 8),
        ("module", "xla_chunk", 3000, 14),
        *((kind, "eager", 200, 5) for kind in ("keras", "tf_keras")),
        *((kind, "graph", 1200, 10) for kind in ("keras", "tf_keras")),
        *((kind, "xla", 1200, 6) for kind in ("keras", "tf_keras")),
        *((kind, "xla_chunk", 2000, 10) for kind in ("keras", "tf_keras")),
    ],
)
def test_killed_a_hundred_times_at_random_moments(trainings, random_seed, kind, runner, steps, kills):
    _kill_at_random_moments(trainings, random_seed, kind, runner, steps, kills)
