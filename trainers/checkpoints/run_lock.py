"""One writer per run folder."""

import fcntl
import os
import time
from pathlib import Path

from tftoolkit.errors import CodedError

_PATIENCE = 0.2  # seconds: those who only look (`is_locked`) hold the lock for a moment


class RunLockedError(CodedError, RuntimeError):
    """Another process (or another trainer in this one) is writing to the folder."""

    error_code = "run-locked"


class RunLock:
    """An exclusive lock on a folder, as a context manager.

    The kernel drops the lock when its holder dies, however it dies, so there are no stale locks. The file keeps the
    holder's process id for the error message only.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / ".lock"
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def __enter__(self) -> "RunLock":
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _taken(descriptor):
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunLockedError(
                f"{self._path.parent} is in use by process {holder}; wait for it or choose another folder"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None


def is_locked(directory: Path) -> bool | None:
    """Whether a run is being written to the folder; None if that can't be seen (no right to open the lock's file).

    Changes nothing, and needs no right to write.
    """
    try:
        descriptor = os.open(directory / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        else:
            return True
