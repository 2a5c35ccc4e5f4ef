"""A source over text files: lines, paragraphs or whole files."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes, read_part, size_of
from tftoolkit.pipelines.sources.foreign import LOOKED_AT, refuse_foreign
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python

_BLOCK = 4 << 20
_BOM = b"\xef\xbb\xbf"


class TextSource:
    """See ``text``. Of each example only where it begins and ends is kept: 24 bytes."""

    def __init__(self, paths: Sequence[str], by: str) -> None:
        self._paths = list(paths)
        self._by = by
        sizes = names_and_sizes(paths)
        self._identity = identity(sizes)
        with progress("indexing text files", sum(sizes.values()), "B") as bar:
            spans = [_SPANS[by](path, size, bar) for path, size in zip(paths, sizes.values(), strict=True)]
        self._first = np.cumsum([0, *(len(one) for one in spans)])
        self._spans = np.concatenate(spans)  # int64[n, 3]: begin, end, number of the first line
        if not len(self._spans):
            raise ValueError(f"files: there is no {by} in {', '.join(paths)}")

    @property
    def element_spec(self) -> Spec:
        return {"text": tf.TensorSpec([], tf.string)}

    def __len__(self) -> int:
        return len(self._spans)

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(lambda rows: [[self._read(int(row)) for row in rows]], indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "text", "by": self._by, **self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        path = self._path(index)
        return path if self._by == "file" else f"{path}, line {self._spans[index, 2]}"

    def _path(self, index: int) -> str:
        return self._paths[int(np.searchsorted(self._first, index, side="right")) - 1]

    def _read(self, index: int) -> bytes:
        begin, end, line = map(int, self._spans[index])
        content = read_part(self._path(index), begin, end - begin)
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as error:
            path, size = self._path(index), min(LOOKED_AT, size_of(self._path(index)))
            refuse_foreign(path, read_part(path, 0, size), "")
            line += content.count(b"\n", 0, error.start)
            raise SourceError(
                f"{self._path(index)}, line {line}: byte 0x{content[error.start]:02x} at offset {begin + error.start} "
                f"is no UTF-8 ({error.reason}); convert the file to UTF-8",
                code="source-format",
            ) from error
        if self._by == "line":
            return content[:-2] if content.endswith(b"\r\n") else content.removesuffix(b"\n")
        return content


def text(files: FilePath | Sequence[FilePath], by: str = "line") -> TextSource:
    """A source over UTF-8 text: example i is ``{"text": string}``, the i-th line, paragraph or file.

    The files are searched once for where the examples begin; their contents are read when an example is fetched. A byte
    order mark at a file's beginning is left out. Text has no checksum: a file that was cut off is a shorter text. An
    empty file has no line and no paragraph; as a whole it is one empty example.

    Args:
      files: one or more files, or patterns with ``*``, in order.
      by: "line": up to each ``\\n`` or ``\\r\\n``, without it; also empty ones. "paragraph": what stands between
        lines that are empty or blank, without the white space at its end. "file": all of a file.

    Raises:
      ValueError: no file, no example, or another ``by``.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      IsADirectoryError, PermissionError: a folder in place of its files; what this user must not read.
      SourceError: while iterating: an example is no UTF-8 (names file and line), or a file has changed.
    """
    if by not in _SPANS:
        raise ValueError(f"by={by!r}: expected 'line', 'paragraph' or 'file'")
    return TextSource(list_files(files), by)


def _start(path: str, size: int) -> int:
    return len(_BOM) if size >= len(_BOM) and read_part(path, 0, len(_BOM)) == _BOM else 0


def _blocks(path: str, start: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The bytes of the file from ``start`` on, in blocks with their offsets."""
    for begin in range(start, size, _BLOCK):
        yield begin, np.frombuffer(read_part(path, begin, min(_BLOCK, size - begin)), np.uint8)


def _lines(path: str, size: int, bar: Any) -> np.ndarray:
    start, ends = _start(path, size), [np.empty(0, np.int64)]
    for begin, block in _blocks(path, start, size):
        ends.append(begin + np.flatnonzero(block == ord("\n")) + 1)
        bar.update(len(block))
    end = np.concatenate(ends)
    if size > (end[-1] if len(end) else start):
        end = np.append(end, size)  # the last line has no line break
    return np.stack([np.concatenate([[start], end[:-1]])[: len(end)], end, np.arange(1, len(end) + 1)], axis=1)


def _paragraphs(path: str, size: int, bar: Any) -> np.ndarray:
    """Runs of lines that hold anything but white space."""
    lines = _lines(path, size, bar)
    last = np.zeros(len(lines), np.int64)  # behind each line's last byte that is no white space; 0: there is none
    for begin, block in _blocks(path, _start(path, size), size):
        part = slice(
            np.searchsorted(lines[:, 1], begin, side="right"), np.searchsorted(lines[:, 0], begin + len(block))
        )
        starts = np.maximum(lines[part, 0] - begin, 0)
        ends = np.minimum(lines[part, 1] - begin, len(block))
        visible = np.where(_IS_SPACE[block], -1, np.arange(len(block)))
        latest = np.maximum.accumulate(visible)[ends - 1]
        last[part] = np.where(latest >= starts, begin + latest + 1, last[part])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], last > 0, [False]]).astype(np.int8)))
    first, behind = edges[::2], edges[1::2]
    return np.stack([lines[first, 0], last[behind - 1], lines[first, 2]], axis=1)


def _file(path: str, size: int, bar: Any) -> np.ndarray:
    return np.array([[_start(path, size), size, 1]], np.int64)


_IS_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\r\n\v\f", np.uint8))
_SPANS = {"line": _lines, "paragraph": _paragraphs, "file": _file}
