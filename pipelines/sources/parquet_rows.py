"""Row groups of Parquet files in memory, laid out so that rows in any order cost little: a batch is one copy."""

import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.sources.parquet_types import Layout, stored
from tftoolkit.pipelines.sources.source import Spec, varies

_KEPT_BYTES = 1 << 30
_TABLE_BYTES = 1 << 27
_OBJECT_BYTES = 50  # of a bytes object and the pointer to it, beside its content


class Rows:
    """Rows by number, out of the row groups that were used last.

    Args:
      read: number of a row group -> its columns: name -> a pyarrow array of one chunk, without a dictionary.
      first: the first row of each row group, and the number of all rows.
      spec: dtypes and shapes of the columns.
      layouts: name -> how tensors lie in memory, where not as their shape tells.
      defaults: name -> what stands in place of a missing value; without it a missing float is NaN.
      kept: how many row groups are kept; None: as many as take about 1 GiB, but at least two.
      row_bytes: what the texts and lists of a row take in the file, about.
      describe: row -> where it lies, for messages.
    """

    def __init__(
        self,
        read: Callable[[int], Mapping[str, Any]],
        first: np.ndarray,
        spec: Spec,
        layouts: Mapping[str, Layout | None],
        defaults: Mapping[str, Any],
        kept: int | None,
        row_bytes: float,
        describe: Callable[[int], str],
    ) -> None:
        self._read, self._spec, self._layouts = read, spec, layouts
        self._defaults, self._describe = defaults, describe
        self._first, self._largest = first, int(np.diff(first).max())
        texts = {name: one for name, one in spec.items() if one.dtype == tf.string and not varies(one)}
        row_bytes += _OBJECT_BYTES * sum(math.prod(one.shape) for one in texts.values())
        row_bytes += _numbers_dtype(spec).itemsize
        self._is_small = kept is None and row_bytes * first[-1] <= _TABLE_BYTES
        if kept is None:
            kept = max(2, int(_KEPT_BYTES / self._largest / max(1, row_bytes)))
        self._count = min(kept, len(first) - 1)
        # Each row group that is kept has a slot. The numbers of a row lie side by side: one copy, and one miss of the
        # processor's caches. Memory is taken only where slots are filled.
        places = self._count * self._largest
        self._numbers = np.empty(places, _numbers_dtype(spec))
        self._texts = {name: np.empty([places, *one.shape], object) for name, one in texts.items()}
        self._lists: list[dict[str, _Lists]] = [{} for _ in range(self._count)]
        self._lacking: list[dict[str, np.ndarray]] = [{} for _ in range(self._count)]  # reason -> which rows, bool
        self._slots = np.full(len(first) - 1, -1)
        self._used, self._clock = np.zeros(len(first) - 1, np.int64), 0
        self._lock = threading.Lock()

    @property
    def kept(self) -> list[int]:
        """The row groups in memory."""
        return [int(group) for group in np.flatnonzero(self._slots >= 0)]

    def table(self) -> dict[str, tf.Tensor] | None:
        """All rows, decoded now; None where that takes more than 128 MiB, a row cannot be read, or there are lists."""
        if not self._is_small or any(varies(one) for one in self._spec.values()):
            return None
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self._spec}
        size = 0
        try:
            for group in range(len(self._first) - 1):
                arrays = self._read(group)
                size += sum(array.nbytes for array in arrays.values())
                if size > _TABLE_BYTES:  # the file may hold each text once that the rows hold many times
                    return None
                for name, spec in self._spec.items():
                    column, lacking = _column(name, arrays[name], spec, self._layouts[name], self._defaults.get(name))
                    if lacking:
                        return None
                    assert isinstance(column, np.ndarray)
                    parts[name].append(column)
        except SourceError:
            return None  # told when one of its rows is wanted
        with tf.init_scope(), tf.device("CPU:0"):  # kept, so not tensors of the graph that may be traced just now
            return {name: tf.constant(np.concatenate(parts.pop(name)), spec.dtype) for name, spec in self._spec.items()}

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """The columns of ``rows``, in the order of the spec: an array with a value per row, of objects for lists.

        Raises:
          SourceError: a row lacks a value; or what ``read`` raises.
        """
        groups = np.searchsorted(self._first, rows, side="right") - 1
        with self._lock:  # each row group is read once, and none is dropped while it is copied
            if not len(rows) or self._slots[groups].min() >= 0:
                return self._copied(rows, groups)
            wanted = np.unique(groups)
            if len(wanted) <= self._count:
                self._load(wanted)
                return self._copied(rows, groups)
            columns: list[np.ndarray] = []
            for part in np.array_split(wanted, -(-len(wanted) // self._count)):
                places = np.flatnonzero(np.isin(groups, part))
                self._load(part)
                some = self._copied(rows[places], groups[places])
                columns = columns or [np.empty([len(rows), *one.shape[1:]], one.dtype) for one in some]
                for column, values in zip(columns, some, strict=True):
                    column[places] = values
            return columns

    def _load(self, wanted: np.ndarray) -> None:
        """Puts row groups into slots, at most as many as there are."""
        self._clock += 1
        self._used[wanted] = self._clock
        for group in wanted[self._slots[wanted] < 0].tolist():
            columns = self._read(group)
            kept = np.flatnonzero(self._slots >= 0)
            if len(kept) < self._count:
                slot = min(set(range(self._count)).difference(self._slots[kept].tolist()))
            else:
                oldest = kept[np.argmin(self._used[kept])]
                slot, self._slots[oldest] = int(self._slots[oldest]), -1
            self._fill(slot, columns)
            self._slots[group] = slot

    def _fill(self, slot: int, arrays: Mapping[str, Any]) -> None:
        begin = slot * self._largest
        self._lists[slot], self._lacking[slot] = {}, {}
        for name, spec in self._spec.items():
            array = arrays[name]
            column, lacking = _column(name, array, spec, self._layouts[name], self._defaults.get(name))
            self._lacking[slot] |= lacking
            place = slice(begin, begin + len(array))
            if isinstance(column, _Lists):
                self._lists[slot][name] = column
            elif name in self._texts:
                self._texts[name][place] = column
            else:
                self._numbers[_field(name)][place] = column

    def _copied(self, rows: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
        self._clock += 1
        self._used[groups] = self._clock
        slots, within = self._slots[groups], rows - self._first[groups]
        if any(self._lacking):
            self._check(rows, slots, within)
        places = slots * self._largest + within
        numbers = self._numbers[places]
        return [
            self._lists_of(name, slots, within)
            if varies(spec)
            else self._texts[name][places]
            if name in self._texts
            else numbers[_field(name)]
            for name, spec in self._spec.items()
        ]

    def _lists_of(self, name: str, slots: np.ndarray, within: np.ndarray) -> np.ndarray:
        found = np.empty(len(slots), object)
        for place, (slot, row) in enumerate(zip(slots.tolist(), within.tolist(), strict=True)):
            lists = self._lists[slot][name]
            found[place] = lists.values[lists.starts[row] : lists.stops[row]]
        return found

    def _check(self, rows: np.ndarray, slots: np.ndarray, within: np.ndarray) -> None:
        for slot in np.unique(slots).tolist():
            for reason, mask in self._lacking[slot].items():
                bad = np.flatnonzero((slots == slot) & mask[np.where(slots == slot, within, 0)])
                if len(bad):
                    raise SourceError(f"{self._describe(int(rows[bad[0]]))}, {reason}", code="source-record")


class _Lists(NamedTuple):
    """Row i is values[starts[i] : stops[i]]."""

    values: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def _field(name: str) -> str:
    return f"column {name}"  # never empty, which NumPy would replace


def _numbers_dtype(spec: Spec) -> np.dtype:
    """Of a row, without its texts and lists."""
    fixed = {name: one for name, one in spec.items() if one.dtype != tf.string and not varies(one)}
    return np.dtype([(_field(name), one.dtype.as_numpy_dtype, tuple(one.shape)) for name, one in fixed.items()])


def _filling(dtype: tf.DType) -> Any:
    return np.nan if dtype.is_floating else b"" if dtype == tf.string else 0


def _column(
    name: str, array: Any, spec: tf.TensorSpec, layout: Layout | None, default: Any
) -> tuple["np.ndarray | _Lists", dict[str, np.ndarray]]:
    """A column's values, and which rows lack one, with the reason."""
    lacking = {}
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    present = array.drop_null()
    if default is None and not (spec.dtype.is_floating and spec.shape.rank == 0) and not valid.all():
        reason = f"the value is missing, and {spec.dtype.name}{spec.shape} has none for that"
        lacking[f"column {name!r}: {reason}; give defaults={{{name!r}: …}}"] = ~valid
    column: np.ndarray | _Lists
    if varies(spec):
        column, incomplete = _lists(present, valid, spec, layout, default)
    else:
        column, incomplete = _values(present, spec.shape.as_list(), spec.dtype, layout)
        if not valid.all():
            column = _spread(column, valid, _filling(spec.dtype) if default is None else default)
    if incomplete.any():
        lacking[f"column {name!r}: a value in the list is missing"] = _spread(incomplete, valid, False)
    return column, lacking


def _spread(values: np.ndarray, valid: np.ndarray, filling: Any) -> np.ndarray:
    """``values`` in the rows that are ``valid``, ``filling`` in the others."""
    spread = np.empty([len(valid), *values.shape[1:]], values.dtype)
    spread[valid], spread[~valid] = values, filling
    return spread


def _lists(
    present: Any, valid: np.ndarray, spec: tf.TensorSpec, layout: Layout | None, default: Any
) -> tuple[_Lists, np.ndarray]:
    """The lists of a column, and which of those that are present lack a value."""
    values, is_null = _values(present.flatten(), spec.shape.as_list()[1:], spec.dtype, layout)
    stops = np.cumsum(present.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    starts = np.concatenate([[0], stops])[:-1]
    nulls = np.concatenate([[0], np.cumsum(is_null)])
    # Missing lists are one that is added behind all others.
    filling = np.asarray([] if default is None else default, values.dtype).reshape([-1, *values.shape[1:]])
    end = len(values) + len(filling)
    lists = _Lists(np.concatenate([values, filling]), _spread(starts, valid, len(values)), _spread(stops, valid, end))
    return lists, nulls[stops] > nulls[starts]


def _values(array: Any, shape: list[int], dtype: tf.DType, layout: Layout | None) -> tuple[np.ndarray, np.ndarray]:
    """[n, *shape] with NaN, 0 or "" where there is no value, and which rows lack one. A missing float is NaN."""
    values, lacking = _nested(array, dtype)
    if layout:
        stored_as, order = layout
        values = values.reshape([-1, *stored_as]).transpose([0, *(1 + axis for axis in order)])
    return values.reshape([len(lacking), *shape]), lacking


def _nested(array: Any, dtype: tf.DType) -> tuple[np.ndarray, np.ndarray]:
    """As ``_values``, with a dimension for each list of fixed size that lies in another."""
    array = stored(array)
    is_null = array.is_null().to_numpy(zero_copy_only=False)
    if hasattr(array.type, "list_size"):
        inner, lacking = _nested(array.flatten(), dtype)  # flatten leaves missing lists out
        size, valid = array.type.list_size, ~is_null
        is_null = _spread(np.asarray(lacking.reshape([valid.sum(), size]).any(1)), valid, True)
        return _spread(inner.reshape([valid.sum(), size, *inner.shape[1:]]), valid, _filling(dtype)), is_null
    if dtype == tf.string:
        return _as_bytes(array), is_null
    filled = array.fill_null(_filling(dtype)) if is_null.any() else array
    return filled.to_numpy(zero_copy_only=False), np.zeros_like(is_null) if dtype.is_floating else is_null


def _as_bytes(array: Any) -> np.ndarray:
    from pyarrow import large_binary, types

    if types.is_string(array.type) or types.is_large_string(array.type) or types.is_fixed_size_binary(array.type):
        array = array.cast(large_binary())
    return array.fill_null(b"").to_numpy(zero_copy_only=False)
