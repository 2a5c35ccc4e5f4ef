"""A source over Parquet files (https://parquet.apache.org/docs/file-format/), read row group by row group."""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.conversion import exact_array
from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.files import FilePath, identity, is_remote, list_files, names_and_sizes
from tftoolkit.pipelines.sources.source import Example, Spec, fetch_in_python, varies


class ParquetSource:
    """See ``parquet``."""

    def __init__(
        self, paths: Sequence[str], columns: Sequence[str] | None, defaults: Mapping[str, Any], row_groups: int
    ) -> None:
        self._paths = list(paths)
        self._identity = {
            **identity(names_and_sizes(paths)),
            "defaults": {name: str(value) for name, value in defaults.items()},
        }
        opened = [_open(path) for path in paths]
        self._metadata = [file.metadata for file in opened]
        self.element_spec: Spec = _spec(paths[0], opened[0].schema_arrow, columns)
        for path, file in zip(paths, opened, strict=True):
            if _spec(path, file.schema_arrow, list(self.element_spec)) != self.element_spec:
                raise ValueError(f"files: the columns of {path} have other types than those of {paths[0]}")
        unknown = next((name for name in defaults if name not in self.element_spec), None)
        if unknown is not None:
            raise ValueError(f"defaults: there is no column {unknown!r}; there are {', '.join(self.element_spec)}")
        self._defaults = {
            name: exact_array(f"defaults[{name!r}]", value, self.element_spec[name])[()]
            for name, value in defaults.items()
        }
        schema = opened[0].schema_arrow
        self._layouts = {name: _layout(schema.field(name).type) for name in self.element_spec}
        self._groups = [(file, group) for file, one in enumerate(self._metadata) for group in range(one.num_row_groups)]
        rows = [self._metadata[file].row_group(group).num_rows for file, group in self._groups]
        self._first = np.cumsum([0, *rows])
        self._first_of_file = np.cumsum([0, *(one.num_rows for one in self._metadata)])
        if not self._first[-1]:
            raise ValueError(f"files: there is no row in {', '.join(paths)}")
        self._cache = _Cache(self._read_group, row_groups)

    def __len__(self) -> int:
        return int(self._first[-1])

    def fetch(self, indices: tf.Tensor) -> Example:
        return fetch_in_python(self._read, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "parquet", **self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        file = int(np.searchsorted(self._first_of_file, index, side="right")) - 1
        return f"{self._paths[file]}, row {index - int(self._first_of_file[file])}"

    def _read(self, rows: np.ndarray) -> list[list[Any]]:
        values: list[list[Any]] = [[None] * len(rows) for _ in self.element_spec]
        groups = np.searchsorted(self._first, rows, side="right") - 1
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            columns = self._cache.get(int(group))
            for column, name in zip(values, self.element_spec, strict=True):
                taken = columns[name].take(rows[places] - self._first[group])
                for place, value in zip(places, self._values(name, taken, rows[places]), strict=True):
                    column[place] = value
        return values

    def _values(self, name: str, taken: Any, rows: np.ndarray) -> list[Any]:
        """The rows of a column as arrays; ``rows`` are their numbers in the source, for messages."""
        spec = self.element_spec[name]
        valid = taken.is_valid().to_numpy(zero_copy_only=False)
        present = taken.drop_null()
        if _lacks_values(present, spec):
            bad = next(i for i in range(len(present)) if _lacks_values(present.slice(i, 1), spec))
            raise SourceError(
                f"{self.describe(int(rows[valid][bad]))}, column {name!r}: a value in the list is missing"
            )
        leaf = _levels(present)[-1]
        if leaf.null_count:
            leaf = leaf.fill_null(float("nan"))
        found = iter(_split(leaf, present, spec, self._layouts[name]))
        return [next(found) if ok else self._missing(name, int(row)) for ok, row in zip(valid, rows, strict=True)]

    def _missing(self, name: str, row: int) -> Any:
        if name in self._defaults:
            return self._defaults[name]
        spec = self.element_spec[name]
        if spec.dtype.is_floating and spec.shape.rank == 0:
            return np.nan
        raise SourceError(
            f"{self.describe(row)}, column {name!r}: the value is missing, and {spec.dtype.name}{spec.shape} has none "
            f"for that; give defaults={{{name!r}: …}}"
        )

    def _read_group(self, number: int) -> dict[str, Any]:
        file, group = self._groups[number]
        path = self._paths[file]
        try:
            opened = _open(path, self._metadata[file])  # of its own: a ParquetFile is not made for several threads
            table = opened.read_row_group(group, columns=list(self.element_spec), use_threads=False)
            return {name: _plain(table.column(name)) for name in self.element_spec}
        except (OSError, ValueError) as error:  # pyarrow's own errors are both or either
            raise SourceError(f"{path}, row group {group}: it is damaged: {message_of(error)}") from error


def parquet(
    files: FilePath | Sequence[FilePath],
    columns: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    row_groups_in_memory: int = 8,
) -> ParquetSource:
    """A source over the rows of Parquet files; needs pyarrow (``pip install 'tftoolkit[parquet]'``).

    A row group is decoded as a whole and kept until ``row_groups_in_memory`` others have been used. Shuffled reading
    wants all row groups in turn: if they do not fit, write the rows as TFRecord first (``tftoolkit data write``).

    Args:
      files: one or more files with the same columns, or patterns with ``*``, in order.
      columns: which to read; default: all. Numbers, booleans, strings and binary are scalars; lists of fixed size are
        [size], other lists [None]; lists may hold lists of fixed size. Tensors of fixed shape have that shape.
      defaults: name -> what to put in place of a missing value: of the column's type, which must hold it without loss
        (floats are rounded). Without it a missing float is NaN, and a row with another missing value is bad.
      row_groups_in_memory: at least 1.

    Raises:
      ImportError: pyarrow is not installed.
      TypeError: a column of another type (dates, decimals, structs, maps), or a default of another; names it.
      ValueError: no row, an unknown column, files whose columns differ, or a default that the column cannot hold.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      SourceError: a file is no Parquet file. While iterating: a damaged row group, or a row with a missing value.
    """
    if row_groups_in_memory < 1:
        raise ValueError(f"row_groups_in_memory={row_groups_in_memory}: must be at least 1")
    return ParquetSource(list_files(files), columns, defaults or {}, row_groups_in_memory)


class _Cache:
    """The row groups that were used last."""

    def __init__(self, read: Callable[[int], dict[str, Any]], size: int) -> None:
        self._read, self._size = read, size
        self._kept: collections.OrderedDict[int, dict[str, Any]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, number: int) -> dict[str, Any]:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        columns = self._read(number)
        with self._lock:
            self._kept[number] = columns
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return columns


def _open(path: str, metadata: Any = None) -> Any:
    try:
        from pyarrow import parquet as pyarrow_parquet
    except ImportError as error:
        raise ImportError("sources.parquet needs the library pyarrow: pip install 'tftoolkit[parquet]'") from error
    try:
        return pyarrow_parquet.ParquetFile(
            tf.io.gfile.GFile(path, "rb") if is_remote(path) else path,
            metadata=metadata,
            page_checksum_verification=True,
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is no Parquet file, or a damaged one: {message_of(error)}") from error


def _spec(path: str, schema: Any, columns: Sequence[str] | None) -> Spec:
    names = schema.names if columns is None else list(columns)
    if not names:
        raise ValueError(f"columns: the list is empty; there are {', '.join(schema.names)}")
    spec = {}
    for name in names:
        if name not in schema.names:
            raise ValueError(f"columns: {path} has no column {name!r}; there are {', '.join(schema.names)}")
        spec[name] = _column_spec(path, name, schema.field(name).type)
    return spec


def _column_spec(path: str, name: str, kind: Any) -> tf.TensorSpec:
    from pyarrow import types

    shape: list[int | None] = []
    leaf = _value_type(kind)
    while True:
        if types.is_fixed_size_list(leaf):
            shape.append(leaf.list_size)
        elif not shape and _is_list(leaf):
            shape.append(None)
        elif _is_tensor(leaf):
            shape += leaf.shape if leaf.permutation is None else [leaf.shape[axis] for axis in leaf.permutation]
        else:
            break
        leaf = _value_type(leaf.value_type)
    if _is_text(leaf):
        dtype = tf.string
    elif types.is_integer(leaf) or types.is_floating(leaf) or types.is_boolean(leaf):
        dtype = tf.as_dtype(leaf.to_pandas_dtype())
    else:
        raise TypeError(f"columns: {name!r} of {path} is {kind}, which no tensor can hold; leave it out, or convert it")
    if dtype == tf.string and shape[:1] == [None] and len(shape) > 1:
        raise TypeError(f"columns: {name!r} of {path} is {kind}; lists of lists can only hold numbers")
    return tf.TensorSpec(shape, dtype)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, types.is_binary_view, types.is_fixed_size_binary))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _is_tensor(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.fixed_shape_tensor"


def _value_type(kind: Any) -> Any:
    """That of what a dictionary encodes, and of what stands for the types that Arrow adds to its own."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return _value_type(kind.value_type)
    if getattr(kind, "extension_name", "") == "arrow.bool8":
        return pyarrow.bool_()
    if getattr(kind, "extension_name", "") in ("arrow.json", "arrow.uuid"):
        return kind.storage_type
    return kind


def _layout(kind: Any) -> tuple[list[int], list[int]] | None:
    """Shape in memory and order of the axes, of tensors whose axes are stored in another order."""
    while hasattr(kind, "value_type") and not _is_tensor(kind):
        kind = kind.value_type
    return (kind.shape, kind.permutation) if _is_tensor(kind) and kind.permutation else None


def _plain(column: Any) -> Any:
    """One array instead of chunks, of a type from which rows can be taken."""
    from pyarrow import types

    array = _stored(column.combine_chunks())
    if types.is_list_view(array.type) or types.is_large_list_view(array.type):
        array = _list_of(array)
    plain = _without_views(array.type)
    return array if plain == array.type else array.cast(plain)


def _list_of(views: Any) -> Any:
    """Lists of the same values; pyarrow's own cast (26.0) gives arrays that end before their last offset."""
    import pyarrow

    valid = views.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.where(valid, views.sizes.to_numpy(zero_copy_only=False), 0).astype(np.int64)
    ends = np.cumsum([0, *sizes])
    places = np.repeat(views.offsets.to_numpy(zero_copy_only=False) - ends[:-1], sizes) + np.arange(ends[-1])
    values = views.values.cast(_without_views(views.values.type)).take(pyarrow.array(places))
    return pyarrow.LargeListArray.from_arrays(pyarrow.array(ends), values, mask=pyarrow.array(~valid))


def _without_views(kind: Any) -> Any:
    import pyarrow
    from pyarrow import types

    if types.is_string_view(kind) or types.is_binary_view(kind):
        return pyarrow.large_string() if types.is_string_view(kind) else pyarrow.large_binary()
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(_without_views(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return (pyarrow.list_ if types.is_list(kind) else pyarrow.large_list)(_without_views(kind.value_type))
    return kind


def _stored(array: Any) -> Any:
    """The array without dictionary and without a type that Arrow adds to its own."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        return _stored(array.dictionary_decode())
    if not isinstance(array.type, pyarrow.BaseExtensionType):
        return array
    return array.storage.cast(pyarrow.bool_()) if array.type.extension_name == "arrow.bool8" else array.storage


def _levels(array: Any) -> list[Any]:
    """The rows, what is in their lists, in the lists of those, …; at last the values."""
    levels = [_stored(array)]
    while hasattr(levels[-1], "flatten") and hasattr(levels[-1].type, "value_type"):
        levels.append(_stored(levels[-1].flatten()))
    return levels


def _lacks_values(rows: Any, spec: tf.TensorSpec) -> bool:
    """Whether something within them is missing; a float may be."""
    _, *inner = _levels(rows)
    return any(level.null_count for level in (inner[:-1] if spec.dtype.is_floating else inner))


def _split(leaf: Any, rows: Any, spec: tf.TensorSpec, layout: tuple[list[int], list[int]] | None) -> list[Any]:
    """``leaf``, the values of all ``rows`` in a line, as an array per row."""
    if spec.dtype == tf.string:
        flat = np.empty(len(leaf), object)
        flat[:] = [value.encode() if isinstance(value, str) else value for value in leaf.to_pylist()]
    else:
        flat = leaf.to_numpy(zero_copy_only=False)
    if layout:
        shape, order = layout
        flat = flat.reshape([-1, *shape]).transpose([0, *(1 + axis for axis in order)])
    if not varies(spec):
        return list(flat.reshape([len(rows), *spec.shape]))
    bounds = np.cumsum(rows.value_lengths().to_numpy(zero_copy_only=False))[:-1]
    return np.split(flat.reshape([-1, *spec.shape[1:]]), bounds) if len(rows) else []
