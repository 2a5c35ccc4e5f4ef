"""Reading a ``metrics.jsonl`` that may be large, damaged, or written to at this moment."""

import errno
import json
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_CHUNK = 1 << 20
_TAIL = 1 << 16  # bytes at the end that hold the latest lines
_MARK = 256  # bytes before an offset by which it is recognised
_MOST = 4000  # lines of kind "train" that are read at once; more than a screen has columns
_TRAIN = b'{"kind": "train"'

Line = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What came after an offset.

    ``mark`` belongs to ``offset``: together they ask for the next part. ``again``: the lines are those from the
    beginning, as the file is no longer the one that was read (a run that went back rewrites its end). ``every``: only
    one of so many lines of kind "train" is there.
    """

    lines: list[Line]
    offset: int
    mark: int
    again: bool
    every: int


def part(path: Path, offset: int = 0, mark: int = 0) -> Part:
    """The whole lines from ``offset`` on. What is no line of metrics is left out. Raises OSError."""
    again = offset > 0 and _mark(path, offset) != mark
    first = 0 if again else offset
    every = _every(path, first)
    lines, end, seen = [], first, 0
    for raw in _raw_lines(path, first):
        end += len(raw)
        if raw.startswith(_TRAIN):
            seen += 1
            if seen % every:
                continue
        if (line := parsed(raw)) is not None:
            lines.append(line)
    return Part(lines, end, _mark(path, end), again, every)


def latest(path: Path) -> dict[str, Line]:
    """The latest line of each kind among those at the end of the file. Raises OSError."""
    with _opened(path) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        whole = file.read().split(b"\n")[1 if size > _TAIL else 0 : -1]
    return {line["kind"]: line for line in map(parsed, whole) if line is not None}


def best(path: Path, metric: str, better: Callable[[float, float], bool]) -> Line | None:
    """The evaluation with the best ``metric``, the first of equals. Raises OSError."""
    found: Line | None = None
    for raw in _raw_lines(path, 0):
        if raw.startswith(_TRAIN):
            continue
        line = parsed(raw)
        if line is None or line["kind"] != "eval" or line.get(metric) is None:
            continue
        if found is None or better(line[metric], found[metric]):
            found = line
    return found


def parsed(raw: bytes) -> Line | None:
    """A line as :class:`tftoolkit.trainers.loop.metrics_log.MetricsLog` writes it, or None.

    Numbers that aren't finite, which programs of others write as NaN, are None, and what is no number is left out.
    """
    try:
        entry = json.loads(raw)
        kind, step = entry["kind"], entry["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(kind, str) or type(step) is not int or step < 0:
        return None
    return {"kind": kind, "step": step} | {
        name: None if value is None or not math.isfinite(value) else value
        for name, value in entry.items()
        if name not in ("kind", "step") and (value is None or type(value) is float or _small_integer(value))
    }


def _small_integer(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 1000  # a float can hold it


def _opened(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file")  # to open a pipe would wait for ever
    return path.open("rb")


def _raw_lines(path: Path, offset: int) -> Iterator[bytes]:
    """Whole lines; what follows the last end of line is still being written."""
    with _opened(path) as file:
        file.seek(offset)
        rest = b""
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line + b"\n"


def _every(path: Path, offset: int) -> int:
    """So that about ``_MOST`` lines are left of the file's rest."""
    with _opened(path) as file:
        size = file.seek(0, 2) - offset
        file.seek(offset)
        beginning = file.read(_TAIL)
    lines = beginning.count(b"\n") * size / max(len(beginning), 1)
    return max(1, math.ceil(lines / _MOST))


def _mark(path: Path, offset: int) -> int:
    """Of the bytes before ``offset``."""
    with _opened(path) as file:
        file.seek(max(0, offset - _MARK))
        return zlib.crc32(file.read(min(_MARK, offset)))
