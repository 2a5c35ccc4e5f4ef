"""Real signals to real processes: the result is always that of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tftoolkit import trainers

SCRIPT = Path(__file__).parents[1] / "example.py"
STEPS = 610


def _start(directory, runner, steps=STEPS):
    arguments = [sys.executable, str(SCRIPT), str(directory), runner, str(steps)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def _wait_for(process, event):
    for line in process.stdout:
        if line.strip() == event:
            return
    raise AssertionError(f"{event} never came: {process.stderr.read()}")


def _assert_equal_runs(found, expected):
    with np.load(found / "final.npz") as a, np.load(expected / "final.npz") as b:
        assert set(a.files) == set(b.files)
        for name in b.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (found / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert not list((found / "checkpoints").glob(".tmp*"))


@pytest.mark.slow
def test_killed_and_terminated_runs_end_the_same(tmp_path, example):
    expected = tmp_path / "undisturbed"
    example.main(str(expected), "xla_chunk", str(STEPS))
    directory = tmp_path / "disturbed"

    process = _start(directory, "xla_chunk")  # SIGTERM: saves and leaves
    _wait_for(process, "evaluate")
    with (
        pytest.raises(trainers.RunLockedError, match=f"process {process.pid};"),
        trainers.Checkpointer(directory / "checkpoints"),
    ):
        pass
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGTERM: saved step" in err
    assert "Traceback" not in err
    saved = trainers.Checkpointer(directory / "checkpoints").steps()[-1]
    assert 60 <= saved < STEPS

    process = _start(directory, "xla_chunk")  # SIGKILL in the middle of things
    _wait_for(process, "checkpoint")
    time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert trainers.Checkpointer(directory / "checkpoints").steps()[-1] > saved

    _finish(_start(directory, "xla_chunk"))
    _assert_equal_runs(directory, expected)


@pytest.mark.slow
def test_interrupt_from_the_keyboard(tmp_path):
    process = _start(tmp_path, "graph")
    _wait_for(process, "log")
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt: SIGINT: saved step" in err
