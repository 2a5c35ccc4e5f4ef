"""A source over TFRecord files, read record by record in any order through a side-car index."""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops import builder
from tftoolkit.custom_ops.errors import BuildError
from tftoolkit.custom_ops.record_reader import FRAME_BYTES, index_records, read_records
from tftoolkit.pipelines.errors import SourceError, message_of, source_error
from tftoolkit.pipelines.sources.source import Example, Spec

INDEX_SUFFIX = ".index.npz"
_GZIP = b"\x1f\x8b"


class TFRecordSource:
    """See ``tfrecord``."""

    def __init__(self, paths: Sequence[Path], features: Mapping[str, tf.io.FixedLenFeature] | None) -> None:
        self._features = None if features is None else _checked_features(features)
        indices = [_index(path) for path in paths]
        self._names = [path.name for path in paths]
        counts = [len(lengths) for lengths in indices]
        if not sum(counts):
            raise ValueError(f"files: there is no record in {', '.join(map(str, paths))}")
        self._length = sum(counts)
        self._bytes = sum(int(lengths.sum()) for lengths in indices)
        with tf.device("CPU:0"):
            self._paths = tf.constant([str(path) for path in paths])
            self._starts = tf.constant(np.cumsum([0, *counts[:-1]]), tf.int64)
            self._lengths = tf.constant(np.concatenate(indices), tf.int64)
            self._offsets = tf.constant(np.concatenate([_offsets(lengths) for lengths in indices]), tf.int64)
        if features is not None:
            self._check_features()

    def _check_features(self) -> None:
        """Parses one record, so that wrong features are told at once."""
        try:
            self.fetch(tf.zeros([1], tf.int64))
        except tf.errors.DataLossError:
            pass  # told when it is this record's turn
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:  # TensorFlow may quote the record's bytes
            reason = message_of(error) if isinstance(error, tf.errors.OpError) else "it is no tf.train.Example"
            raise ValueError(f"features: the first record cannot be parsed with them: {reason}") from None

    @property
    def element_spec(self) -> Spec:
        if self._features is None:
            return {"record": tf.TensorSpec([], tf.string)}
        return {name: tf.TensorSpec(feature.shape, feature.dtype) for name, feature in self._features.items()}

    def __len__(self) -> int:
        return self._length

    def fetch(self, indices: tf.Tensor) -> Example:
        path, numbers = self._paths[0], indices
        if len(self._names) > 1:
            file = tf.searchsorted(self._starts, indices, side="right") - 1
            path, numbers = tf.gather(self._paths, file), indices - tf.gather(self._starts, file)
        records = read_records(path, tf.gather(self._offsets, indices), tf.gather(self._lengths, indices), numbers)
        if self._features is None:
            return {"record": records}
        names = tf.strings.join([path, tf.strings.as_string(numbers)], ", record ")  # for error messages
        parsed: Example = tf.io.parse_example(records, self._features, names)
        return parsed

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "tfrecord", "files": self._names, "length": self._length, "bytes": self._bytes}


def tfrecord(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    features: Mapping[str, tf.io.FixedLenFeature] | None = None,
) -> TFRecordSource:
    """A source over the records of TFRecord files; example i is the i-th record, counted through all files.

    Every record is read with one system call when it is fetched, and both its checksums are checked. Where the records
    lie stands in ``<file>.index.npz`` beside each file (where that folder cannot be written, in tftoolkit's cache). It
    is made once, from the record's length fields, and anew when the file's size or time of change is another.

    Args:
      files: one or more uncompressed files on a local disk, in order.
      features: name -> ``tf.io.FixedLenFeature``, to parse each record as ``tf.train.Example``. Without it an example
        is ``{"record": string}``.

    Raises:
      TypeError, ValueError: no file, no record, or features that the first record does not have.
      FileNotFoundError: a file is missing.
      SourceError: a length field is damaged, so that what follows it cannot be found; names file, record and offset.
        While iterating: a record is damaged (again named), or is no Example with these features.
    """
    listed = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not listed:
        raise ValueError("files: the list is empty; give at least one TFRecord file")
    paths = [Path(file).expanduser().absolute() for file in listed]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"files: there is no file {path}")
    return TFRecordSource(paths, features)


def _checked_features(features: Mapping[str, Any]) -> dict[str, tf.io.FixedLenFeature]:
    if not isinstance(features, Mapping) or not features:
        raise TypeError(f"features: expected a dict of tf.io.FixedLenFeature, got {features!r}")
    for name, feature in features.items():
        if not isinstance(feature, tf.io.FixedLenFeature) or not tf.TensorShape(feature.shape).is_fully_defined():
            raise TypeError(
                f"features[{name!r}]: expected a tf.io.FixedLenFeature of a fixed shape, since only those can be "
                f"stacked into batches, got {feature!r}"
            )
    return dict(features)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths + FRAME_BYTES) - (lengths + FRAME_BYTES)


def _index(path: Path) -> np.ndarray:
    """Lengths of the file's records, int64[n]: from the side-car if it is up to date, else from the file."""
    info = path.stat()
    stamp = np.array([info.st_size, info.st_mtime_ns], np.int64)
    places = [path.with_name(path.name + INDEX_SUFFIX)]
    try:
        key = hashlib.sha256(str(path).encode()).hexdigest()[:20]
        places.append(builder.cache_folder() / "tfrecord" / f"{key}{INDEX_SUFFIX}")
    except BuildError:
        pass  # then there is no second place
    for place in places:
        lengths = _read_index(place, stamp)
        if lengths is not None:
            return lengths
    try:
        lengths = index_records(str(path)).numpy()
    except tf.errors.OpError as error:
        hint = ". It is compressed: unpack it, compressed files cannot be read in any order" if _is_gzip(path) else ""
        raise SourceError(f"{source_error(error)}{hint}") from None
    for place in places:
        if _write_index(place, stamp, lengths):
            break
    return lengths


def _read_index(place: Path, stamp: np.ndarray) -> np.ndarray | None:
    try:
        with np.load(place) as stored:
            lengths: np.ndarray = stored["lengths"]
            current = np.array_equal(stored["stamp"], stamp) and lengths.dtype == np.int64 and lengths.ndim == 1
            return lengths if current and int((lengths + FRAME_BYTES).sum()) == stamp[0] else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing, or damaged


def _write_index(place: Path, stamp: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether it could be written. Two processes may write at once, so it appears by a rename."""
    try:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder:
            written = Path(folder) / place.name
            np.savez(written, stamp=stamp, lengths=lengths)
            written.replace(place)
    except OSError:
        return False
    return True


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == _GZIP
