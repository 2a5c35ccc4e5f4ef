"""A benchmark's part that runs in a process of its own, under another interpreter where that is needed."""

import subprocess
import time
from pathlib import Path
from typing import Any


class OtherProcess:
    """Runs a script of this folder that first prints a version, then answers each line with seconds."""

    def __init__(self, python: str, script: str) -> None:
        command = [python, Path(__file__).with_name(script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._line()

    def run(self, *what: Any) -> float:
        """Returns seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, what)) + "\n")
        self._process.stdin.flush()
        seconds = float(self._line())
        time.sleep(0.25)  # PyTorch's threads spin for a while after their work, and would slow who comes next
        return seconds

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
