"""One process of a gang: its start, its output, its signs of life and its end."""

import collections
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tftoolkit.trainers.distribution import heartbeat
from tftoolkit.trainers.distribution.cluster import Task

_TAIL = 20  # lines
_LONGEST_LINE = 1 << 16  # bytes; a longer one is shown in pieces

# The kernel kills the worker when its launcher dies, however that happens. In a process of its own before the command,
# as code between fork and exec is not safe in Python. Arguments: the launcher's process id, the command.
_EXEC = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
if os.getppid() == int(sys.argv[1]):
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class Worker:
    """A running process, in a process group of its own.

    Args:
        task: who it is; its environment is in addition to this process's own.
        command: what to run.
        heartbeat_file: what the worker touches; a file that isn't there.
        show: gets each complete line of the output, without its end.
        log_file: the output is appended to it as it is.
    """

    def __init__(
        self,
        task: Task,
        command: Sequence[str],
        heartbeat_file: Path,
        show: Callable[[str], None],
        log_file: Path | None = None,
    ) -> None:
        self.task = task
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self.saved_step: int | None = None
        self._show = show
        self._log = log_file.open("ab", buffering=0) if log_file else None
        self._rest = b""
        self._heartbeat_file = heartbeat_file
        self._last_beat: int | None = None
        self._has_beaten = False
        self._alive_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *command],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **task.environment, heartbeat.VARIABLE: str(heartbeat_file)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            process_group=0,  # a Ctrl-C on the terminal reaches the launcher only
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        os.set_blocking(self.output.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.returncode

    def reap(self) -> bool:
        """Whether it has ended. What it started in its process group ends with it."""
        if self._process.returncode is not None:
            return True
        # Not reaped before its group is killed: the number could belong to somebody else by then.
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        self.kill()
        self._process.wait()
        self._note_heartbeat()
        self.read()
        if self._rest:
            self._take_line(self._rest)
        self.output.close()
        if self._log is not None:
            self._log.close()
        return True

    def signal(self, number: int) -> None:
        """To the process itself."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to its whole group, stopped processes as well."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def read(self) -> bool:
        """Pass on what it has written. Returns False at the end of its output."""
        while True:
            try:
                data = os.read(self.output.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            if self._log is not None:
                self._log.write(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._take_line(line)
            if len(self._rest) > _LONGEST_LINE:
                self._take_line(self._rest)
                self._rest = b""

    def _take_line(self, line: bytes) -> None:
        # As a terminal would show it in the end: progress bars write over themselves.
        text = line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
        self.tail.append(text)
        self._show(text)

    def silent_for(self) -> tuple[float, bool]:
        """Seconds since the last sign of life, and whether there was any heartbeat yet."""
        self._note_heartbeat()
        return time.monotonic() - self._alive_at, self._has_beaten

    def _note_heartbeat(self) -> None:
        try:
            beat = self._heartbeat_file.stat().st_mtime_ns
            text = self._heartbeat_file.read_text()
        except FileNotFoundError:
            if self._has_beaten:  # paused
                self._alive_at = time.monotonic()
            return
        if text.isdigit():
            self.saved_step = int(text)
        if beat != self._last_beat:  # by our own clock, since the system's may be set
            self._last_beat, self._has_beaten, self._alive_at = beat, True, time.monotonic()

    def excuse(self) -> None:
        """Count its silence from now on: we didn't listen ourselves."""
        self._alive_at = time.monotonic()
