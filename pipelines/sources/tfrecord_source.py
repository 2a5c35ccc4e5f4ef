"""A source over TFRecord files, read record by record in any order through a side-car index."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.engine.record_reader import read_records
from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.example_parser import ExampleParser
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes
from tftoolkit.pipelines.sources.manifest import stored_features
from tftoolkit.pipelines.sources.source import Example, Spec
from tftoolkit.pipelines.sources.tfrecord_index import lengths_of, offsets_of


class TFRecordSource:
    """See ``tfrecord``."""

    def __init__(self, paths: Sequence[str], parser: ExampleParser | None) -> None:
        self._parser = parser
        indices = lengths_of(list(paths))
        self._identity = identity(names_and_sizes(paths))
        counts = [len(lengths) for lengths in indices]
        if not sum(counts):
            raise ValueError(f"files: there is no record in {', '.join(paths)}")
        self._length = sum(counts)
        self._files = list(paths)
        self._first = np.cumsum([0, *counts[:-1]])
        with tf.device("CPU:0"):
            self._paths = tf.constant(self._files)
            self._starts = tf.constant(self._first, tf.int64)
            self._lengths = tf.constant(np.concatenate(indices), tf.int64)
            self._offsets = tf.constant(np.concatenate([offsets_of(lengths) for lengths in indices]), tf.int64)
        if parser is not None:
            self._check_features()

    def _check_features(self) -> None:
        """Parses three records, so that wrong features are told at once; one bad record is told when it is its turn."""
        reasons = []
        for index in (0, self._length // 2, self._length - 1):
            try:
                self.fetch(tf.constant([index], tf.int64))
                return
            except tf.errors.DataLossError:
                return
            except (SourceError, tf.errors.OpError, UnicodeDecodeError) as error:  # may quote the record's bytes
                known = isinstance(error, SourceError | tf.errors.InvalidArgumentError)
                reasons.append(message_of(error) if known else "it is no tf.train.Example")
        raise ValueError(f"features: the first record cannot be parsed with them: {reasons[0]}")

    @property
    def element_spec(self) -> Spec:
        return {"record": tf.TensorSpec([], tf.string)} if self._parser is None else dict(self._parser.element_spec)

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> Example:
        path, numbers = self._paths[0], indices
        if len(self._files) > 1:
            file = tf.searchsorted(self._starts, indices, side="right") - 1
            path, numbers = tf.gather(self._paths, file), indices - tf.gather(self._starts, file)
        offsets = tf.gather(self._offsets, indices)
        records = read_records(path, offsets, tf.gather(self._lengths, indices), numbers)
        if self._parser is None:
            return {"record": records}
        names = [path, ", record ", tf.strings.as_string(numbers), " at offset ", tf.strings.as_string(offsets)]
        return self._parser.parse(records, tf.strings.join(names))

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tfrecord", **self._identity, "length": self._length}

    def describe(self, index: int) -> str:
        file = int(np.searchsorted(self._first, index, side="right")) - 1
        number, offset = index - int(self._first[file]), int(self._offsets[index])
        return f"{self._files[file]}, record {number} at offset {offset}"


def tfrecord(
    files: FilePath | Sequence[FilePath],
    features: Mapping[str, Any] | str | None = None,
) -> TFRecordSource:
    """A source over the records of TFRecord files; example i is the i-th record, counted through all files.

    Both checksums of every record are checked when it is read. Where the records lie stands in ``<file>.index.npz``
    beside each file (where that folder cannot be written, in tftoolkit's cache). It is made once, from the record's
    length fields, and anew when the file's size or time of change is another. Local files are mapped: their pages in
    the page cache count as shared memory of the process. A file of 0 bytes is one without records.

    Args:
      files: one or more uncompressed files, or patterns with ``*``, in order.
      features: how to parse each record as ``tf.train.Example``: name -> ``tf.io.FixedLenFeature``; ``VarLenFeature``
        or ``RaggedFeature`` for a list of any length; ``FixedLenSequenceFeature`` for rows of a fixed shape, any number
        of them; or ``tf.TensorSpec`` for what ``pipelines.write`` has written. "stored": as told by the file that
        ``pipelines.write`` puts beside them. None: an example is ``{"record": string}``.

    Raises:
      TypeError, ValueError: no file, no record, or features that the first record does not have.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      IsADirectoryError, PermissionError: a folder in place of its files; what this user must not read.
      SourceError: a file ends inside a record, or so much is damaged that the way to the records behind is lost; names
        file, record and offset. While iterating: a record is damaged, or is no Example with these features (named too).
    """
    paths = list_files(files)
    if features == "stored":
        features = stored_features(paths[0])
    return TFRecordSource(paths, None if features is None else ExampleParser(features))  # type: ignore[arg-type]
