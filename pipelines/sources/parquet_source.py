"""A source over Parquet files (https://parquet.apache.org/docs/file-format/), read row group by row group."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.conversion import exact_array
from tftoolkit.pipelines.errors import SourceError, message_of
from tftoolkit.pipelines.sources.files import FilePath, identity, is_remote, list_files, names_and_sizes
from tftoolkit.pipelines.sources.parquet_rows import Rows
from tftoolkit.pipelines.sources.parquet_types import column_spec, layout, plain
from tftoolkit.pipelines.sources.source import Example, Spec, bytes_per_row, fetch_in_python, varies


class ParquetSource:
    """See ``parquet``."""

    def __init__(
        self, paths: Sequence[str], columns: Sequence[str] | None, defaults: Mapping[str, Any], row_groups: int | None
    ) -> None:
        self._paths = list(paths)
        self._identity = {
            **identity(names_and_sizes(paths)),
            "defaults": {name: str(value) for name, value in defaults.items()},
        }
        opened = [_open(path) for path in paths]
        self._metadata = [file.metadata for file in opened]
        for path, one in zip(paths, self._metadata, strict=True):
            if one.num_rows != sum(one.row_group(group).num_rows for group in range(one.num_row_groups)):
                raise SourceError(
                    f"{path} is a damaged Parquet file: its footer tells two numbers of rows", code="source-damaged"
                )
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
        self._layouts = {name: layout(schema.field(name).type) for name in self.element_spec}
        self._groups = [(file, group) for file, one in enumerate(self._metadata) for group in range(one.num_row_groups)]
        rows = [self._metadata[file].row_group(group).num_rows for file, group in self._groups]
        self._first = np.cumsum([0, *rows])
        self._first_of_file = np.cumsum([0, *(one.num_rows for one in self._metadata)])
        if not self._first[-1]:
            raise ValueError(f"files: there is no row in {', '.join(paths)}")
        self._rows = Rows(
            self._read_group,
            self._first,
            self.element_spec,
            self._layouts,
            self._defaults,
            row_groups,
            self._row_bytes(),
            self.describe,
        )

    def __len__(self) -> int:
        return int(self._first[-1])

    @functools.cached_property
    def _table(self) -> dict[str, tf.Tensor] | None:
        return self._rows.table()

    @property
    def row_bytes(self) -> int | None:
        """Bytes of a row, where the whole table is in memory."""
        return None if self._table is None else bytes_per_row(self._table.values())

    def fetch(self, indices: tf.Tensor) -> Example:
        if self._table is not None:
            return {name: tf.gather(column, indices) for name, column in self._table.items()}
        return fetch_in_python(self._rows.take, indices, self.element_spec)

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "parquet", **self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        file = int(np.searchsorted(self._first_of_file, index, side="right")) - 1
        return f"{self._paths[file]}, row {index - int(self._first_of_file[file])}"

    def _row_bytes(self) -> float:
        """What the columns of texts and lists take in the files, per row."""
        variable = [name for name, one in self.element_spec.items() if one.dtype == tf.string or varies(one)]
        size = 0
        for path, one in zip(self._paths, self._metadata, strict=True):
            try:
                columns = [
                    one.row_group(0).column(number).path_in_schema
                    for number in range(one.num_columns if one.num_row_groups else 0)
                ]
            except UnicodeDecodeError as error:
                raise SourceError(f"{path} is a damaged Parquet file: {error}", code="source-damaged") from error
            wanted = [number for number, column in enumerate(columns) if column.split(".")[0] in variable]
            groups = [one.row_group(number) for number in range(one.num_row_groups if wanted else 0)]
            size += sum(group.column(number).total_uncompressed_size for group in groups for number in wanted)
        return size / len(self)

    def _read_group(self, number: int) -> dict[str, Any]:
        file, group = self._groups[number]
        path = self._paths[file]
        try:
            opened = _open(path, self._metadata[file])  # of its own: a ParquetFile is not made for several threads
            table = opened.read_row_group(group, columns=list(self.element_spec), use_threads=True)
            if table.num_rows != self._first[number + 1] - self._first[number]:
                raise ValueError(f"it has {table.num_rows} rows, and not what the footer tells")
            return {name: plain(table.column(name)) for name in self.element_spec}
        except (OSError, ValueError) as error:  # pyarrow's own errors are both or either
            raise SourceError(
                f"{path}, row group {group}: it is damaged: {message_of(error)}", code="source-damaged"
            ) from error


def parquet(
    files: FilePath | Sequence[FilePath],
    columns: Sequence[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    row_groups_in_memory: int | None = None,
) -> ParquetSource:
    """A source over the rows of Parquet files; needs pyarrow (``pip install 'tftoolkit[parquet]'``).

    A row group is decoded as a whole and kept as long as there is room. Shuffled reading wants all row groups in turn:
    if they do not fit, write the rows as TFRecord first (``tftoolkit data write``).

    Args:
      files: one or more files with the same columns, or patterns with ``*``, in order.
      columns: which to read; default: all. Numbers, booleans, strings and binary are scalars; lists of fixed size are
        [size], other lists [None]; lists may hold lists of fixed size. Tensors of fixed shape have that shape.
      defaults: name -> what to put in place of a missing value: of the column's type, which must hold it without loss
        (floats are rounded). Without it a missing float is NaN, and a row with another missing value is bad.
      row_groups_in_memory: how many are kept, at least 1; default: those used last that take 1 GiB, at least two.

    Raises:
      ImportError: pyarrow is not installed.
      TypeError: a column of another type (dates, decimals, structs, maps), or a default of another; names it.
      ValueError: no row, an unknown column, files whose columns differ, or a default that the column cannot hold.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      IsADirectoryError, PermissionError: a folder in place of its files; what this user must not read.
      SourceError: a file is no Parquet file. While iterating: a damaged row group, or a row with a missing value.
    """
    if row_groups_in_memory is not None and row_groups_in_memory < 1:
        raise ValueError(f"row_groups_in_memory={row_groups_in_memory}: must be at least 1")
    return ParquetSource(list_files(files), columns, defaults or {}, row_groups_in_memory)


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
        raise SourceError(
            f"{path} is no Parquet file, or a damaged one: {message_of(error)}", code="source-damaged"
        ) from error


def _spec(path: str, schema: Any, columns: Sequence[str] | None) -> Spec:
    names = schema.names if columns is None else list(columns)
    if not names:
        raise ValueError(f"columns: the list is empty; there are {', '.join(schema.names)}")
    spec = {}
    for name in names:
        if name not in schema.names:
            raise ValueError(f"columns: {path} has no column {name!r}; there are {', '.join(schema.names)}")
        spec[name] = column_spec(path, name, schema.field(name).type)
    return spec
