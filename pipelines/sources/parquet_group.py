"""A row group of a Parquet file in memory, laid out so that rows in any order cost little."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.sources.source import Spec, varies

_OBJECT_BYTES = 41  # of a bytes object and the pointer to it, beside its content


class RowGroup:
    """The decoded rows of a row group.

    Args:
      columns: name -> a pyarrow array of one chunk, without a dictionary.
      spec: dtypes and shapes of the columns.
      defaults: name -> what stands in place of a missing value; without it a missing float is NaN.
    """

    def __init__(self, columns: Mapping[str, Any], spec: Spec, defaults: Mapping[str, Any]) -> None:
        self._spec = spec
        self._bad: list[tuple[np.ndarray, str]] = []  # which rows, and what is wrong with them
        # Numbers of a row lie side by side, so that a row is one copy, and one miss of the processor's caches.
        rows = len(next(iter(columns.values())))
        self._numbers = np.zeros(rows, _numbers_dtype(spec))
        self._others: dict[str, _Lists | np.ndarray] = {}
        for name, one in spec.items():
            column = self._column(name, columns[name], one, defaults.get(name))
            if _is_numeric(one):
                self._numbers[_field(name)] = column
            else:
                self._others[name] = column
        texts = sum(columns[name].nbytes + _OBJECT_BYTES * rows for name in self._others)
        self.nbytes = self._numbers.nbytes + texts
        self._any_bad = np.logical_or.reduce([mask for mask, _ in self._bad]) if self._bad else None

    def problem(self, rows: np.ndarray) -> tuple[int, str] | None:
        """The first of ``rows`` that lacks a value, and which."""
        if self._any_bad is None or not self._any_bad[rows].any():
            return None
        row = int(rows[self._any_bad[rows]][0])
        return row, next(reason for mask, reason in self._bad if mask[row])

    def put(self, rows: np.ndarray, batch: "Batch", places: np.ndarray) -> None:
        """Copies ``rows`` to ``places`` of the batch."""
        batch.numbers[places] = self._numbers[rows]
        for name, column in self._others.items():
            if isinstance(column, np.ndarray):
                batch.others[name][places] = column[rows]
            else:
                starts, stops = column.starts[rows].tolist(), column.stops[rows].tolist()
                for place, start, stop in zip(places.tolist(), starts, stops, strict=True):
                    batch.others[name][place] = column.values[start:stop]

    def _column(self, name: str, array: Any, spec: tf.TensorSpec, default: Any) -> Any:
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        present = array.drop_null()
        if default is None and not (spec.dtype.is_floating and spec.shape.rank == 0) and not valid.all():
            lacks = f"the value is missing, and {spec.dtype.name}{spec.shape} has none for that"
            self._bad.append((~valid, f"column {name!r}: {lacks}; give defaults={{{name!r}: …}}"))
        if varies(spec):
            column, incomplete = _lists(present, valid, spec, default)
        else:
            values, incomplete = _values(present, spec.shape.as_list(), spec.dtype)
            column = values
            if not valid.all():
                column = np.zeros([len(array), *values.shape[1:]], values.dtype)
                column[~valid] = default if default is not None else _filling(spec.dtype)
                column[valid] = values
        if incomplete.any():
            mask = np.zeros(len(array), bool)
            mask[valid] = incomplete
            self._bad.append((mask, f"column {name!r}: a value in the list is missing"))
        return column


class Batch:
    """Rows of several row groups: ``columns`` are those of the spec, each with a value per row."""

    def __init__(self, rows: int, spec: Spec) -> None:
        self._spec = spec
        self.numbers = np.empty(rows, _numbers_dtype(spec))
        self.others = {
            name: np.empty([rows, *([] if varies(one) else one.shape)], object)
            for name, one in spec.items()
            if not _is_numeric(one)
        }

    def columns(self) -> list[np.ndarray]:
        return [self.others[name] if name in self.others else self.numbers[_field(name)] for name in self._spec]


class _Lists(NamedTuple):
    """Row i is values[starts[i] : stops[i]]."""

    values: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def _is_numeric(spec: tf.TensorSpec) -> bool:
    """Numbers of a fixed shape."""
    return bool(spec.dtype != tf.string and not varies(spec))


def _field(name: str) -> str:
    return f"column {name}"  # never empty, which NumPy would replace


def _numbers_dtype(spec: Spec) -> np.dtype:
    fixed = {name: one for name, one in spec.items() if _is_numeric(one)}
    return np.dtype([(_field(name), one.dtype.as_numpy_dtype, tuple(one.shape)) for name, one in fixed.items()])


def _filling(dtype: tf.DType) -> Any:
    return np.nan if dtype.is_floating else b"" if dtype == tf.string else 0


def _lists(present: Any, valid: np.ndarray, spec: tf.TensorSpec, default: Any) -> tuple[_Lists, np.ndarray]:
    """The lists of a column, and which of those that are present lack a value."""
    values, incomplete = _values(present.flatten(), spec.shape.as_list()[1:], spec.dtype)
    ends = np.cumsum(present.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    # Missing lists are the one that is added at the end: the default.
    filling = np.asarray([] if default is None else default, values.dtype).reshape([-1, *values.shape[1:]])
    starts, stops = np.full(len(valid), len(values)), np.full(len(valid), len(values) + len(filling))
    starts[valid], stops[valid] = np.concatenate([[0], ends])[:-1], ends
    up_to = np.concatenate([[0], np.cumsum(incomplete)])
    lacking = up_to[stops[valid]] > up_to[starts[valid]]
    return _Lists(np.concatenate([values, filling]), starts, stops), lacking


def _values(array: Any, shape: list[int], dtype: tf.DType) -> tuple[np.ndarray, np.ndarray]:
    """An array [n, *shape] with NaN, 0 or "" where there is no value, and which rows lack one; NaN is a value."""
    is_null = array.is_null().to_numpy(zero_copy_only=False)
    if shape:
        inner, lacking = _values(array.flatten(), shape[1:], dtype)  # flatten leaves missing lists out
        values = np.full([len(array), *shape], _filling(dtype), inner.dtype)
        values[~is_null] = inner.reshape([-1, *shape])
        is_null[~is_null] = lacking.reshape([-1, shape[0]]).any(1)
        return values, is_null
    if dtype == tf.string:
        return _as_bytes(array), is_null
    filled = array.fill_null(_filling(dtype)) if is_null.any() else array
    values = filled.to_numpy(zero_copy_only=False)
    return values, np.zeros_like(is_null) if dtype.is_floating else is_null


def _as_bytes(array: Any) -> np.ndarray:
    import pyarrow

    binary = pyarrow.large_binary() if pyarrow.types.is_large_string(array.type) else pyarrow.binary()
    if pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type):
        array = array.cast(binary)
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    values[array.is_null().to_numpy(zero_copy_only=False)] = b""
    return values
