"""A source over arrays: in memory, or in files mapped into it."""

import functools
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Spec, bytes_per_row, fetch_in_python

_SAMPLES = 64  # blocks of a mapped file that stand for its contents in a fingerprint
_SAMPLE_BYTES = 4096


class ArraySource:
    """See ``arrays``; ``identity`` says in states where the arrays come from."""

    def __init__(self, features: Mapping[str, Any], identity: Mapping[str, str]) -> None:
        if not isinstance(features, Mapping):
            raise TypeError(f"features: expected a dict of arrays, got {type(features).__name__}")
        if not features:
            raise ValueError("features: the dict is empty; give at least one array")
        columns = {_checked_name(name): _column(name, value) for name, value in features.items()}
        self._mapped = {name: column for name, column in columns.items() if isinstance(column, np.memmap)}
        self._tensors = {name: column for name, column in columns.items() if name not in self._mapped}
        self._spec = {name: _spec(name, column) for name, column in columns.items()}
        lengths = {name: int(column.shape[0]) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise ValueError(f"features: the arrays have different lengths ({listed}); they need one row per example")
        self._length = next(iter(lengths.values()))
        self._identity = dict(identity)

    @property
    def element_spec(self) -> Spec:
        return dict(self._spec)

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def row_bytes(self) -> int | None:
        """Bytes of a row, where taking rows costs next to nothing and can't fail."""
        if self._mapped or not all(isinstance(column, tf.Tensor) for column in self._tensors.values()):
            return None
        return bytes_per_row(self._tensors.values())

    def fetch(self, indices: tf.Tensor) -> Example:
        rows = {name: tf.gather(tensor, indices) for name, tensor in self._tensors.items()}
        if self._mapped:
            spec = {name: self._spec[name] for name in self._mapped}
            rows |= fetch_in_python(lambda numbers: [one[numbers] for one in self._mapped.values()], indices, spec)
        return {name: rows[name] for name in self._spec}

    def fingerprint(self) -> dict[str, Any]:
        return {**self._identity, "length": self._length, "sha256": self._digest}

    def describe(self, index: int) -> str:
        return f"{' '.join(self._identity.values())}, row {index}"

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, spec in self._spec.items():
            if name in self._mapped:
                _add_mapped(digest, name, self._mapped[name])
            elif isinstance(self._tensors[name], tf.RaggedTensor):
                _add_tensor(digest, name, self._tensors[name].flat_values)
                _add_tensor(digest, f"{name} {spec.shape}", self._tensors[name].row_splits)
            else:
                _add_tensor(digest, name, self._tensors[name])
        return digest.hexdigest()[:16]


def arrays(features: Mapping[str, Any]) -> ArraySource:
    """A source over equally long arrays: row i of each array makes up example i.

    Args:
      features: name -> array-like with the examples along the first axis; any dtype TensorFlow knows. Copied into
        memory once, apart from ``np.memmap`` (as of ``np.load(file, mmap_mode="r")``), which is read row by row. A list
        of arrays that differ in their first dimension, or a tf.RaggedTensor of ragged_rank 1, gives [None, ...].

    Raises:
      TypeError, ValueError: not a dict of arrays, empty, no example axis, or different lengths.
    """
    return ArraySource(features, {"kind": "arrays"})


def ragged(rows: Sequence[Any], dtype: Any = None) -> tf.RaggedTensor:
    """Rows that differ in their first dimension, as one tensor."""
    parts = [np.asarray(row, dtype) for row in rows]
    filled = [part for part in parts if len(part)] or parts[:1]
    return tf.RaggedTensor.from_row_lengths(
        tf.convert_to_tensor(np.concatenate(filled)), tf.constant([len(part) for part in parts], tf.int64)
    )


def _checked_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"features: names must be strings, got {name!r}")
    return name


def _column(name: str, value: Any) -> Any:
    try:
        with tf.device("CPU:0"):
            if isinstance(value, tf.RaggedTensor):
                column = value.with_row_splits_dtype(tf.int64)
            elif isinstance(value, np.memmap):
                tf.as_dtype(value.dtype)
                column = value
            elif isinstance(value, list | tuple) and len({np.shape(row) for row in value}) > 1:
                column = _ragged_list(name, value)
            else:
                column = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        if str(error).startswith("features["):
            raise
        raise type(error)(f"features[{name!r}]: not an array that TensorFlow can hold: {error}") from error
    if not column.shape.rank if isinstance(column, tf.Tensor) else not len(column.shape):
        raise ValueError(f"features[{name!r}]: got a single value; arrays need the examples along their first axis")
    if isinstance(column, tf.RaggedTensor) and None in column.shape[2:]:
        raise ValueError(f"features[{name!r}]: only the first dimension of its rows may differ, got {column.shape}")
    return column


def _ragged_list(name: str, rows: Sequence[Any]) -> tf.RaggedTensor:
    shapes = {np.shape(row) for row in rows}
    if () in shapes or len({shape[1:] for shape in shapes if shape[0]}) > 1:
        raise ValueError(
            f"features[{name!r}]: the rows have different shapes ({', '.join(map(str, sorted(shapes)[:3]))} …); only "
            "their first dimension may differ, so pad or encode them"
        )
    if any(hasattr(row, "dtype") for row in rows):
        return ragged(rows)
    flat = tf.convert_to_tensor(list(itertools.chain.from_iterable(rows)))  # TensorFlow's dtypes of Python numbers
    return tf.RaggedTensor.from_row_lengths(flat, tf.constant([len(row) for row in rows], tf.int64))


def _spec(name: str, column: Any) -> tf.TensorSpec:
    dtype = column.dtype if isinstance(column, tf.Tensor | tf.RaggedTensor) else tf.as_dtype(column.dtype)
    return tf.TensorSpec(column.shape[1:], dtype)


def _add_tensor(digest: Any, name: str, tensor: tf.Tensor) -> None:
    array = tensor.numpy()
    digest.update(f"{name} {array.dtype} {array.shape} ".encode())
    # Strings lie in memory as pointers, so their serialised form is hashed.
    is_string = tensor.dtype == tf.string
    digest.update(tf.io.serialize_tensor(tensor).numpy() if is_string else array.reshape(-1).view(np.uint8))


def _add_mapped(digest: Any, name: str, array: np.memmap) -> None:
    """A file may be larger than can be read each time, so its size and a part of it stand for all."""
    digest.update(f"{name} {array.dtype} {array.shape} {os.path.basename(str(array.filename))} ".encode())
    step = max(1, _SAMPLE_BYTES // max(1, array[:1].nbytes))
    for start in sorted({int(place) for place in np.linspace(0, max(0, len(array) - step), _SAMPLES)}):
        digest.update(np.ascontiguousarray(array[start : start + step]).tobytes())
