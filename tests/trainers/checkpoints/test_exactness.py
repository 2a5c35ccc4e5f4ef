"""Killed anywhere and run again, the result is bit for bit that of the undisturbed run.

Compared are all variables (weights, optimizer, average, random state), the metrics file (which has the order of the
data in it), and which checkpoint is kept as the best.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tftoolkit import trainers

NEVER = "data:raise:1000000000"


class Server:
    """Starts trainings; see exact.py."""

    def __init__(self):
        script = Path(__file__).parents[1] / "exact.py"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, str(script)], **pipes)

    def start(self, directory, kind, runner, steps, fault=NEVER):
        """Returns the training's process id once it has begun."""
        self.process.stdin.write(f"{directory} {kind} {runner} {steps} {fault}\n")
        self.process.stdin.flush()
        word, number = self.process.stdout.readline().split()
        assert word == "pid", "it ended before it began"
        return int(number)

    def end(self):
        word, code = self.process.stdout.readline().split()
        assert word == "ended"
        return int(code)

    def run(self, *arguments):
        self.start(*arguments)
        return self.end()


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    assert server.process.wait(60) == 0


def _assert_same(found, expected):
    with np.load(found / "final.npz") as a, np.load(expected / "final.npz") as b:
        assert set(a.files) == set(b.files)
        for name in b.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (found / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    best = [trainers.Checkpointer(folder / "checkpoints").best_step() for folder in (found, expected)]
    assert best[0] == best[1]
    assert not list((found / "checkpoints").glob(".tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["module", "fused"])
def test_killed_at_every_point(tmp_path, server, kind):
    expected, directory = tmp_path / "expected", tmp_path / "found"
    assert server.run(expected, kind, "xla_chunk", 130) == 0
    for fault in ("evaluate:kill:1", "save:kill:2", "manifest:kill:2", "data:kill:2", "step:kill:3"):
        assert server.run(directory, kind, "xla_chunk", 130, fault) == -signal.SIGKILL
    assert not (directory / "final.npz").exists()
    assert server.run(directory, kind, "xla_chunk", 130) == 0
    _assert_same(directory, expected)


@pytest.mark.slow
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
def test_killed_at_random_moments(tmp_path, server, kind, runner, steps, kills):
    """100 kills in all; every third at one of the trainer's points, which random moments seldom hit."""
    expected, directory = tmp_path / "expected", tmp_path / "found"
    server.start(expected, kind, runner, steps)
    begin = time.monotonic()
    assert server.end() == 0
    seconds = time.monotonic() - begin
    draw = random.Random(f"{kind} {runner}")
    for number in range(kills):
        if number % 3 == 0:
            fault = f"{draw.choice(['save', 'manifest', 'evaluate', 'data', 'step'])}:kill:{draw.randint(1, 2)}"
            assert server.run(directory, kind, runner, steps, fault) == -signal.SIGKILL
            continue
        process = server.start(directory, kind, runner, steps)
        time.sleep(draw.uniform(0, seconds / kills))
        os.kill(process, signal.SIGKILL)
        assert server.end() == -signal.SIGKILL, "it finished too early to be killed"
    assert not (directory / "final.npz").exists()
    assert server.run(directory, kind, runner, steps) == 0
    _assert_same(directory, expected)
