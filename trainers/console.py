"""The last line of the console, which tells how far long work has come. Needs the standard library only."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

_TERMINAL_INTERVAL = 0.1  # seconds between two looks of the line; nobody reads faster
_FILE_INTERVAL = 10.0
_PHASE_INTERVALS = (1.0, 5.0)  # on a terminal or in a notebook, elsewhere
_NOTEBOOK_INTERVAL, _NOTEBOOK_COLUMNS = 0.5, 120


class Console(Protocol):
    """Where progress is shown, on stderr."""

    def show(self, line: "Line") -> bool:
        """Tell how things stand. False: not now, since the line before is fresh; only if nothing comes after it."""

    def say(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """End with the latest line that was to be shown."""


Line = Callable[[int], str]
"""A line's text within so many columns."""


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """Tells while the block runs that it does, and at its end how long it took."""
    start = time.monotonic()
    over = threading.Event()
    terminal = _live()

    def so_far(columns: int) -> str:
        return f"{what} … {time.monotonic() - start:.0f} s"[:columns]

    def tick() -> None:
        while not over.wait(_PHASE_INTERVALS[terminal is None]):
            if terminal is None:
                print(so_far(sys.maxsize), file=sys.stderr, flush=True)
            else:
                terminal.show(so_far)

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield
        over.set()
        ticking.join()
        done = f"{what} ok ({time.monotonic() - start:.1f} s)"
        if terminal is None:
            print(done, file=sys.stderr, flush=True)
        else:
            terminal.say(done)
    finally:
        over.set()
        ticking.join()
        if terminal is not None:
            terminal.close()


def console(visible: bool = True) -> Console:
    """One line that rewrites itself on a terminal and in a notebook, otherwise a line per 10 s; ``visible``: False:
    nothing at all."""
    return (_live() or _File()) if visible else _Silence()


def _live() -> Console | None:
    """Where a line can be rewritten."""
    if sys.stderr.isatty():
        return _Terminal()
    return _Notebook() if type(sys.stderr).__module__.startswith("ipykernel") else None


class _Silence:
    def show(self, line: Line) -> bool:
        return True

    def say(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class _File:
    """A line per interval, and always the first and the last."""

    def __init__(self) -> None:
        self._next_time = 0.0
        self._waiting: str | None = None

    def show(self, line: Line) -> bool:
        self._waiting = line(sys.maxsize)
        if time.monotonic() < self._next_time:
            return False
        self._next_time = time.monotonic() + _FILE_INTERVAL
        self._print_waiting()
        return True

    def say(self, text: str) -> None:
        self._print_waiting()
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._print_waiting()

    def _print_waiting(self) -> None:
        if self._waiting is not None:
            print(self._waiting, file=sys.stderr, flush=True)
            self._waiting = None


class _Notebook:
    """The line rewrites itself below the cell. Notebooks know ``\\r``, but not how to erase."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._drawn = ""
        self._next_time = 0.0

    def show(self, line: Line) -> bool:
        self._line = line
        if time.monotonic() < self._next_time:
            return False
        self._next_time = time.monotonic() + _NOTEBOOK_INTERVAL
        self._draw(line(_NOTEBOOK_COLUMNS))
        return True

    def say(self, text: str) -> None:
        self._line = None
        self._draw(text, end="\n")

    def close(self) -> None:
        if self._line is not None:
            self._draw(self._line(_NOTEBOOK_COLUMNS), end="\n")
            self._line = None

    def _draw(self, text: str, end: str = "") -> None:
        start = "\r" if self._drawn else ""
        print(f"{start}{text:{len(self._drawn)}}", end=end, file=sys.stderr, flush=True)
        self._drawn = "" if end else text


class _Terminal:
    """The line rewrites itself; whatever else is printed goes above it.

    For that ``write`` of sys.stdout and sys.stderr is replaced until :meth:`close`. Other objects in their place would
    not do: the handlers of ``logging`` hold the streams themselves. What C++ code writes still lands behind the line.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._write = sys.stderr.write
        self._lock = threading.RLock()
        self._line: Line | None = None
        self._drawn = False
        self._at_start = True  # of a line: nobody has printed half a one
        self._next_time = 0.0
        streams = {stream for stream in (sys.stdout, sys.stderr) if stream is not None and stream.isatty()}
        # With the "write" that stood there before, if there is such a line around this one.
        self._patched = [(stream, vars(stream).get("write")) for stream in streams]
        for stream in streams:
            stream.write = functools.partial(self._others, stream.write)  # type: ignore[method-assign]

    def show(self, line: Line) -> bool:
        with self._lock:
            self._line = line
            if time.monotonic() < self._next_time:
                return False
            self._draw()
            return True

    def say(self, text: str) -> None:
        with self._lock:
            self._erase()
            self._line = None
            self._write(("" if self._at_start else "\n") + f"{text}\n")
            self._stream.flush()
            self._at_start = True

    def close(self) -> None:
        with self._lock:
            for stream, before in self._patched:
                del stream.write
                if before is not None:
                    stream.write = before  # type: ignore[method-assign]
            self._patched = []
            if self._line is not None:
                self._draw()
                self._write("\n")
                self._stream.flush()
                self._line = None

    def _others(self, write: Callable[[str], int], text: str) -> int:
        """Something that others print, in pieces of a line perhaps: the line makes room and is drawn again below."""
        with self._lock:
            self._erase()
            written = write(text)
            if text:
                self._at_start = text.endswith("\n")
            if self._at_start and self._line is not None:
                self._draw()
            return written

    def _draw(self) -> None:
        assert self._line is not None
        self._erase()
        # In the last column a line would wrap, and there is no way back from the one below.
        self._write(("" if self._at_start else "\n") + self._line(_columns(self._stream) - 1))
        self._stream.flush()
        self._drawn = self._at_start = True
        self._next_time = time.monotonic() + _TERMINAL_INTERVAL

    def _erase(self) -> None:
        if self._drawn:
            self._write("\r\033[K")
            self._stream.flush()
            self._drawn = False


def _columns(stream: Any) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
