"""Runs a function in a child process: converters and runtimes crash on some models, which must not end the caller.

One child serves all conversions of a process, so that TensorFlow's start is paid once. It is a fresh
interpreter (TensorFlow does not survive a fork) that imports what the caller imports but not the caller's main script,
which multiprocessing's "spawn" would run again. It sees no GPU: the caller may hold all its memory, and converters
compute on the CPU.
"""

import atexit
import faulthandler
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar

from tftoolkit.export.report import ExportError

P = ParamSpec("P")
T = TypeVar("T")
IDLE = 60.0  # seconds after which the child ends and gives its memory back
GONE = 3  # its exit status then
BUG = "a bug in the converter or the runtime that this model meets"
CAUSES = {
    "SIGSEGV": BUG,
    "SIGABRT": BUG,
    "SIGKILL": "the system killed it, most likely because memory ran out",
}


def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``function(*args, **kwargs)`` in the child. The function is a module's; what goes in and out can be pickled.

    Raises what the function raises, and ExportError of stage "convert" where it ends its process.
    """
    return call_within(None, function, *args, **kwargs)


def call_within(seconds: float | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``call``, but after so many seconds the child is ended and TimeoutError raised."""
    global _child
    request = pickle.dumps((function, args, kwargs))
    with _lock:
        try:
            answer = None
            while answer is None:  # once; twice where the child has just ended for lack of work
                if _child is None or _child.process.poll() is not None:
                    # What has to be done in time does not wait for TensorFlow, which most of it does not need.
                    _child = _Child(with_tensorflow=seconds is None and "tensorflow" in sys.modules)
                answer = _child.ask(request, seconds)
        except BaseException:  # KeyboardInterrupt too: a late answer would be taken for that to the next request
            _forget()
            raise
    value, error = answer
    if error is not None:
        raise error from None
    return value


class _Child:
    def __init__(self, with_tensorflow: bool) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close() ends it
        start = "startup.import_tensorflow(optional=False)" if with_tensorflow else ""
        code = f"import sys; sys.path[:] = {sys.path!r}; from tftoolkit import startup; {start}\n"
        code += f"from {__name__} import serve; serve({IDLE})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1"},
        )

    def ask(self, request: bytes, seconds: float | None) -> tuple[Any, Exception | None] | None:
        """Value and error; None where the child had ended for lack of work.

        Raises ExportError where it crashes, TimeoutError where it hasn't begun to answer after so many seconds.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._log.seek(0)
        self._log.truncate()
        try:
            self.process.stdin.write(request)
            self.process.stdin.flush()
            if not select.select([self.process.stdout], [], [], seconds)[0]:
                raise TimeoutError(f"no answer within {seconds} s")
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):  # the last: it died while it answered
            status = self.process.wait()
            if status == GONE:
                return None
            self._log.seek(0)
            raise ExportError("convert", _death(status, self._log.read().decode(errors="replace"))) from None

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._log.close()


def _death(status: int, log: str) -> str:
    """How the child ended, in which function, and why; more is in docs/known_converter_bugs.md."""
    how = f"exit status {status}"
    why = log.strip()[-500:] or "it said nothing"
    if status < 0:
        how = signal.Signals(-status).name
        why = CAUSES.get(how, why)
    failed = re.search(r"Check failed: .*", log)
    if failed:
        why += f" ({failed[0][:300]})"
    frame = re.search(r'^Current thread .*\n +File ".*?([^/"]+)", line \d+ in (\w+)', log, re.MULTILINE)
    where = f" in {frame[2]} ({frame[1]})" if frame else ""
    return f"it ended its process with {how}{where}: {why}"


def serve(idle: float) -> None:
    """The child: answers requests from standard input until that ends, or none comes for ``idle`` seconds."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not an answer
    faulthandler.enable(os.dup(2))  # a copy, since converters redirect their own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent ends this one
    while select.select([requests], [], [], idle)[0]:
        try:
            function, args, kwargs = pickle.load(requests)
        except EOFError:
            return
        answer: tuple[Any, Exception | None]
        try:
            answer = function(*args, **kwargs), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, answers)
        answers.flush()
    sys.exit(GONE)


def _forget() -> None:
    global _child
    if _child is not None:
        _child.close()
        _child = None


def _after_fork() -> None:
    """A forked process must not talk to its parent's child."""
    global _child, _lock
    _child, _lock = None, threading.Lock()


_child: _Child | None = None
_lock = threading.Lock()
atexit.register(_forget)
os.register_at_fork(after_in_child=_after_fork)
