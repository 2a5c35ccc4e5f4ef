"""A source over ArrayRecord files (https://github.com/google/array_record), which carry their own index."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.example_parser import ExampleParser
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes, need_local
from tftoolkit.pipelines.sources.manifest import stored_features
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python


class ArrayRecordSource:
    """See ``array_record``."""

    def __init__(self, paths: Sequence[str], parser: ExampleParser | None) -> None:
        self._parser = parser
        self._files = list(paths)
        self._identity = identity(names_and_sizes(paths))
        counts = [_reader(path, *_stamp(path)).num_records() for path in paths]
        if not sum(counts):
            raise ValueError(f"files: there is no record in {', '.join(paths)}")
        self._first = np.cumsum([0, *counts])

    @property
    def element_spec(self) -> Spec:
        return dict(_RAW) if self._parser is None else dict(self._parser.element_spec)

    def __len__(self) -> int:
        return int(self._first[-1])

    def fetch(self, indices: tf.Tensor) -> Example:
        raw = fetch_in_python(self._read, indices, _RAW if self._parser is None else _NAMED)
        return raw if self._parser is None else self._parser.parse(raw["record"], raw["name"])

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "array_record", **self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        return f"{self._files[file]}, record {index - int(self._first[file])}"

    def _read(self, rows: np.ndarray) -> list[Any]:
        records = [b""] * len(rows)
        files = np.searchsorted(self._first, rows, side="right") - 1
        for file in np.unique(files):
            places = np.flatnonzero(files == file)
            numbers = (rows[places] - self._first[file]).tolist()
            for place, record in zip(places, self._records(self._files[file], numbers), strict=True):
                records[place] = record
        if self._parser is None:
            return [records]
        return [records, [self.describe(int(row)) for row in rows]]

    def _records(self, path: str, numbers: list[int]) -> list[bytes]:
        reader = _reader(path, *_stamp(path))
        try:
            found: list[bytes] = reader.read(numbers)
        except Exception as error:  # whatever is wrong with a file, array_record raises bare errors of many types
            if len(numbers) == 1:
                raise SourceError(f"{path}, record {numbers[0]}: {message_of(error)}") from error
            return [self._records(path, [number])[0] for number in numbers]  # to learn which it is
        return found


def array_record(
    files: FilePath | Sequence[FilePath], features: Mapping[str, Any] | str | None = None
) -> ArrayRecordSource:
    """A source over the records of ArrayRecord files; example i is the i-th record, counted through all files.

    Damage costs a whole chunk of the file, which is one record if it was written with ``group_size:1`` as by
    ``pipelines.write``.

    Args:
      files: one or more files, or patterns with ``*``, in order.
      features: as for ``sources.tfrecord``.

    Raises:
      TypeError, ValueError: no file, no record, or wrong features.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      IsADirectoryError, PermissionError: a folder in place of its files; what this user must not read.
      SourceError: a file is no ArrayRecord file. While iterating: a record is damaged, or no Example with these
        features.
    """
    for file in [files] if isinstance(files, str | os.PathLike) else files:
        need_local("files", file)
    paths = list_files(files)
    if features == "stored":
        features = stored_features(paths[0])
    return ArrayRecordSource(paths, None if features is None else ExampleParser(features))  # type: ignore[arg-type]


_RAW = {"record": tf.TensorSpec([], tf.string)}
_NAMED = {**_RAW, "name": tf.TensorSpec([], tf.string)}


def _stamp(path: str) -> tuple[int, int]:
    try:
        info = tf.io.gfile.stat(path)
    except tf.errors.OpError as error:
        raise SourceError(f"{path} cannot be read: {message_of(error)}") from error
    return info.length, info.mtime_nsec


@functools.lru_cache(maxsize=64)
def _reader(path: str, size: int, mtime: int) -> Any:
    from array_record.python import array_record_module  # heavy, and only needed here

    try:
        reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")
        if not reader.ok():
            reader.read([])  # raises with the reason
    except Exception as error:  # as above
        raise SourceError(
            f"{path} is no ArrayRecord file, or a damaged one: {message_of(error)}", code="source-damaged"
        ) from error
    return reader
