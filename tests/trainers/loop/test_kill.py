"""Signals to a training in a process of its own: it saves and leaves, and goes on as if nothing had been.

What SIGKILL does to it is in checkpoints/test_exactness.py.
"""

import os
import signal
from pathlib import Path

import pytest

from tftoolkit import trainers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trainings(trainings_of):
    with trainings_of(Path(__file__).parents[1] / "exact.py") as server:
        yield server


def test_a_terminated_run_ends_the_same(trainings):
    job = {"kind": "module", "runner": "xla_chunk", "steps": 3000}
    assert trainings.run("undisturbed", **job) == 0
    trainings.begin("terminated", announce="evaluate", **job)
    process = trainings.wait_for("pid")
    checkpoints = trainings.folder / "terminated" / "checkpoints"
    with (
        pytest.raises(trainers.RunLockedError, match=f"process {process};"),
        trainers.Checkpointer(checkpoints),
    ):
        pass
    os.kill(process, signal.SIGTERM)
    assert trainings.wait_for("codes") == 75
    assert "SIGTERM: saved step" in trainings.said()
    assert 28 <= trainers.Checkpointer(checkpoints).steps()[-1] < 3000  # evaluated every half epoch of 56 batches
    assert trainings.run("terminated", **job) == 0
    trainings.assert_same("terminated", "undisturbed")
    assert not list(checkpoints.glob(".tmp*"))


def test_interrupt_from_the_keyboard(trainings):
    trainings.begin("interrupted", kind="module", runner="graph", steps=100_000, announce="log")
    os.kill(trainings.wait_for("pid"), signal.SIGINT)
    assert trainings.wait_for("codes") == 1
    assert "KeyboardInterrupt: SIGINT: saved step" in trainings.error("interrupted")
