"""Files of sources: which there are, what identifies them, and reading a part of one.

Paths with a scheme (``gs://``, ``s3://``) go to TensorFlow's own file systems.
"""

import functools
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError, message_of

FilePath = str | os.PathLike[str]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?!\d)")
_LISTED = 8  # so many files stand in a fingerprint by name


def list_files(files: FilePath | Sequence[FilePath]) -> list[str]:
    """The absolute paths of ``files``: one or more, each a path or a pattern with ``*`` (sorted).

    Raises:
      ValueError: an empty list.
      FileNotFoundError: a file, or a shard of ``name-00000-of-00004``, is missing, or nothing matches a pattern.
      IsADirectoryError, PermissionError: what is there is a folder, or must not be read.
    """
    listed = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not listed:
        raise ValueError("files: the list is empty; give at least one file")
    paths = []
    for given in listed:
        file = os.fspath(given)
        path = file if is_remote(file) else str(Path(file).expanduser().absolute())
        if "*" not in path:
            paths.append(path)
            continue
        found = sorted(match for match in tf.io.gfile.glob(path) if not match.endswith(INDEX_SUFFIX))
        if not found:
            _check_listable(os.path.dirname(path))
            raise FileNotFoundError(f"files: nothing matches {path}")
        paths += found
    for path in paths:
        _check_readable(path)
    _check_shards(paths)
    return paths


INDEX_SUFFIX = ".index.npz"  # of the side-car that lies beside TFRecord files


def is_remote(path: str) -> bool:
    return "://" in path


def need_local(argument: str, path: FilePath) -> None:
    """For sources whose libraries read local files only. Raises ValueError."""
    if is_remote(os.fspath(path)):
        raise ValueError(
            f"{argument}={os.fspath(path)!r}: this source reads local files only; copy them here, or mount the store "
            "(sources.text, csv, parquet and tfrecord read through TensorFlow's file systems)"
        )


def size_of(path: str) -> int:
    return int(tf.io.gfile.stat(path).length if is_remote(path) else os.stat(path).st_size)


def identity(sizes: dict[str, int]) -> dict[str, Any]:
    """What identifies files in a fingerprint: their names (without the folder) and sizes, in this order."""
    if len(sizes) <= _LISTED:
        return {"files": dict(sizes)}
    digest = hashlib.sha256(repr(list(sizes.items())).encode()).hexdigest()[:16]
    return {"files": {"count": len(sizes), "bytes": sum(sizes.values()), "names and sizes, sha256": digest}}


def names_and_sizes(paths: Sequence[str]) -> dict[str, int]:
    """Names may repeat in several folders: then a part of the path is kept, as much as it takes."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        start = len(os.path.commonpath([os.path.dirname(path) for path in paths])) if len(set(paths)) > 1 else 0
        names = [f"{number}: {path[start:].lstrip('/')}" for number, path in enumerate(paths)]
    return {name: size_of(path) for name, path in zip(names, paths, strict=True)}


def read_part(path: str, offset: int, size: int) -> bytes:
    """Bytes ``offset`` … ``offset + size`` of a file; from any thread.

    Raises:
      SourceError: the file cannot be read, has become shorter, or was written to since it was opened.
    """
    try:
        if is_remote(path):
            with tf.io.gfile.GFile(path, "rb") as file:
                file.seek(offset)
                content = bytes(file.read(size))
        else:
            content = _open(path).read(offset, size)
    except tf.errors.OpError as error:
        raise SourceError(f"{path} cannot be read: {message_of(error)}") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) < size:
        raise SourceError(
            f"{path} ends at byte {offset + len(content)}, before byte {offset + size}: it has changed",
            code="source-damaged",
        )
    return content


class _LocalFile:
    """An open file, closed when nobody reads it any more."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened_as = self._stamp()

    def read(self, offset: int, size: int) -> bytes:
        if self._stamp() != self._opened_as:
            raise OSError("it was written to while it was being read; open the source again")
        return os.pread(self._descriptor, size, offset)

    def _stamp(self) -> tuple[int, int]:
        info = os.fstat(self._descriptor)
        return info.st_size, info.st_mtime_ns

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _open(path: str) -> _LocalFile:
    """Another file in the place of one that was open counts as another."""
    info = os.stat(path)
    return _opened(path, info.st_ino, info.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _opened(path: str, inode: int, mtime: int) -> _LocalFile:
    return _LocalFile(path)


def _check_readable(path: str) -> None:
    if is_remote(path):
        if not tf.io.gfile.exists(path):
            raise FileNotFoundError(f"files: there is no file {path}")
        return
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:  # not the same as no file, which os.path.exists would make of it
        raise PermissionError(
            f"files: the folder of {path} must not be read by this user; mend its permissions"
        ) from error
    except OSError as error:  # nothing of that name, or a folder in the path is none
        raise FileNotFoundError(f"files: there is no file {path}") from error
    if is_folder:
        raise IsADirectoryError(f"files: {path} is a folder; name its files, e.g. with a pattern: {path}/*")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"files: {path} must not be read by this user; mend its permissions")


def _check_listable(folder: str) -> None:
    """Where nothing was found: whether it is because the folder's names must not be read."""
    if not is_remote(folder) and os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(f"files: the folder {folder} must not be read by this user; mend its permissions")


def _check_shards(paths: Sequence[str]) -> None:
    """Files named name-00000-of-00004 belong together: all of them, or the data set is not whole."""
    present: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        found = _SHARD.search(os.path.basename(path))
        if found:
            pattern = _SHARD.sub(lambda match: f"-{{:05d}}-of-{match[2]}", path, count=1)
            present.setdefault((pattern, found[2]), set()).add(int(found[1]))
    for (pattern, count), numbers in present.items():
        missing = [number for number in range(int(count)) if number not in numbers]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FileNotFoundError(
                f"files: shard {pattern.format(missing[0])}{more} is missing: {len(numbers)} of {int(count)} shards "
                "were given; give all of them, or rename the files to read a part on purpose"
            )
