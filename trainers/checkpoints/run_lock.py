"""One writer per run folder."""

import fcntl
import os
from pathlib import Path


class RunLockedError(RuntimeError):
    """Another process (or another trainer in this one) is writing to the folder."""


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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunLockedError(
                f"{self._path.parent} is in use by process {holder}; wait for it or choose another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._descriptor is not None
        os.close(self._descriptor)
        self._descriptor = None
