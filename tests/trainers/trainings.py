"""Trainings in processes of their own, each forked off a server that has done the slow imports: server and client.

A script that ends in ``serve(run)`` is a server: it reads lines of JSON, a job each, and answers with ``codes`` and
what ``run`` returns, the exit codes of the job's processes. A training writes the variables at its end to
``DIRECTORY.npz``, and errors are added to ``DIRECTORY.txt``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit import trainers


class Trainings:
    """Has a server run trainings in the folders of ``folder``; see ``started``."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self._process = folder, process

    def begin(self, name: str, **job: Any) -> None:
        """Sends a job, which trains in the run folder ``name``."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"directory": str(self.folder / name), **job}) + "\n")
        self._process.stdin.flush()

    def wait_for(self, word: str) -> Any:
        """What is said after ``word`` by the server, or by a training."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(f"{word} "):
                return json.loads(line.removeprefix(word))
            assert not line.startswith("codes "), f"it ended before it said {word}"
        raise AssertionError("the server ended")

    def run(self, name: str, **job: Any) -> Any:
        """The exit codes of the job's processes; negative: the signal that killed it."""
        self.begin(name, **job)
        return self.wait_for("codes")

    def final(self, name: str) -> dict[str, np.ndarray]:
        """All variables at the end."""
        return dict(np.load(self.folder / f"{name}.npz"))

    def log(self, name: str) -> bytes:
        return (self.folder / name / "metrics.jsonl").read_bytes()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log(name).splitlines()]

    def said(self) -> str:
        """On stderr, by all trainings so far."""
        return (self.folder / "stderr").read_text()

    def error(self, name: str) -> str:
        path = self.folder / f"{name}.txt"
        return path.read_text() if path.exists() else "(none)"

    def assert_same(self, found: str, expected: str) -> None:
        """All variables and every metric are the same, bit for bit."""
        self.assert_same_variables(found, expected)
        assert self.log(found) == self.log(expected)

    def assert_same_variables(self, found: str, expected: str) -> None:
        ours, theirs = self.final(found), self.final(expected)
        assert ours.keys() == theirs.keys()
        for variable, value in theirs.items():
            np.testing.assert_array_equal(ours[variable], value, err_msg=variable, strict=True)


@contextlib.contextmanager
def started(script: Path, folder: Path) -> Iterator[Trainings]:
    """The server ``script``, whose trainings run in the folders of ``folder``."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        (folder / "stderr").open("w") as stderr,
        subprocess.Popen([sys.executable, str(script)], stderr=stderr, **pipes) as process,
    ):
        yield Trainings(folder, process)
        process.stdin.close()
    assert process.returncode == 0


def serve(run: Callable[[dict[str, Any]], Any]) -> None:
    """The server."""
    for line in sys.stdin:
        print("codes", json.dumps(run(json.loads(line))), flush=True)


def fork(
    train: Callable[..., None],
    job: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    fault: Sequence[Any] | None = None,
    seconds: int = 200,
) -> int:
    """Calls ``train(**job)`` in a process that is killed after ``seconds``; ``fault``: see ``faults.inject``."""
    if child := os.fork():
        return child
    signal.alarm(seconds)
    os.environ.update(environment or {})
    code: Any = 1
    try:
        with trainers.faults.inject(*fault) if fault else contextlib.nullcontext():
            train(**job)
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        with open(job["directory"] + ".txt", "a") as file:
            traceback.print_exc(file=file)
    sys.stdout.flush()
    os._exit(code)


def exit_code(child: int) -> int:
    """Waits for its end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
