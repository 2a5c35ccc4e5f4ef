"""Stopping between steps instead of anywhere."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

TERMINATED = 75
"""Exit code after SIGTERM: everything is saved; run the same command again to go on (EX_TEMPFAIL of sysexits.h)."""


class TrainingTerminated(SystemExit):
    """SIGTERM came and everything was saved. Uncaught, it ends the process with exit code 75 (:data:`TERMINATED`)."""

    def __init__(self, message: str) -> None:
        super().__init__(TERMINATED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Set once SIGINT or SIGTERM has arrived; ``name`` is the signal's."""

    name: str | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; a second one interrupts at once.

    Python lets only the main thread handle signals; elsewhere nothing is caught.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.name is not None:
            raise KeyboardInterrupt
        request.name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
