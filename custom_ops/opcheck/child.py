"""The parent's side of the worker process: starts it, asks it, and tells what killed it."""

from __future__ import annotations

import atexit
import os
import pickle
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from tftoolkit.custom_ops.emulation import run_settings
from tftoolkit.custom_ops.engine.library import open_library

_TIMEOUT = 120.0  # seconds for one job; kernels in checks take milliseconds, the first job also starts TensorFlow


class Died(Exception):  # noqa: N818
    """The kernel took its process with it; the text names the signal, or says that it hung."""


class RaisedError(Exception):
    """The job raised.

    Attributes:
      kind: the exception's type.
    """

    def __init__(self, kind: str, text: str) -> None:
        # TensorFlow writes about the node before and after the kernel's own line.
        head, mark, _ = text.strip().partition("[[{{")
        lines = [line for line in head.splitlines() if line.strip()]
        super().__init__(f"{kind}: {lines[-1 if mark else 0].strip() if lines else 'without a message'}")
        self.kind = kind


class _Worker:
    def __init__(self) -> None:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        # Guards are for CPU kernels; a GPU is left to the parent.
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": "-1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tftoolkit.custom_ops.opcheck.worker import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )  # fmt: skip
        self.libraries: dict[str, str] = {}  # op type → library file

    def ask(self, message: Any) -> Any:
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump(message, process.stdin)
            process.stdin.flush()
            if not select.select([process.stdout], [], [], _TIMEOUT)[0]:
                self.stop()
                raise Died(f"does not return within {_TIMEOUT:.0f} s")
            return pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = process.wait()
        self.stderr.seek(0)
        said = self.stderr.read().decode(errors="replace").strip().splitlines()
        said = [line for line in said if not re.match(r"[IWE]\d{4} |WARNING: All log", line)]  # TensorFlow's notices
        last = f", saying {said[-1]!r}" if said else ""
        raise Died(f"ends its process with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}{last}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None


def start() -> None:
    """Starts the worker ahead of time: it imports TensorFlow while its parent does other things."""
    global _worker
    with _lock:
        if _worker is None or _worker.process.poll() is not None:
            _worker = _Worker()


def ask(libraries: Sequence[tuple[str, str]], job: str, *arguments: Any) -> Any:
    """Runs a function of ``worker`` there, with the op libraries (name, path) loaded.

    Raises Died when it kills the process or hangs, RaisedError when it raises.
    """
    types = {f"{name}>{op}": path for name, path in libraries for op in open_library(name, path).schemas}
    start()
    worker = _worker
    assert worker is not None
    with _lock:
        if any(worker.libraries.get(op_type, path) != path for op_type, path in types.items()):
            worker.stop()  # it knows an op of this name from another file, and TensorFlow cannot replace ops
            worker = _replace()
        worker.libraries.update(types)
        done, answer = worker.ask((libraries, job, arguments, run_settings.variables()))
    if not done:
        raise RaisedError(*answer)
    return answer


def _replace() -> _Worker:
    global _worker
    _worker = _Worker()
    return _worker


@atexit.register
def _stop() -> None:
    if _worker is not None:
        _worker.stop()
