"""A source over CSV files (RFC 4180), held in memory as columns.

Python's ``csv`` parses, and not ``pyarrow.csv``: it needs no further library, and it alone tells the line on which a
row begins also where quoted values span several lines, which is what a message about a bad row is good for.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.progress import progress
from tftoolkit.pipelines.sources.csv_column import Column, infer
from tftoolkit.pipelines.sources.csv_records import Dialect, records
from tftoolkit.pipelines.sources.files import FilePath, identity, list_files, names_and_sizes
from tftoolkit.pipelines.sources.source import Example, Spec, bytes_per_row, raise_where

_INFERRED_FROM = 10_000  # rows
_AT_ONCE = 256  # rows; with many more at once most of the time goes to the search for garbage

_Row = tuple[int, int, list[str]]  # number of the file; the first line, counted from 1; the values


class CsvSource:
    """See ``csv``."""

    def __init__(self, paths: Sequence[str], settings: "Settings") -> None:
        self._paths = list(paths)
        sizes = names_and_sizes(paths)
        self._identity = {
            **identity(sizes),
            "missing": sorted(settings.missing),
            "defaults": {name: str(value) for name, value in settings.defaults.items()},
            **settings.dialect.identity(),
        }
        with progress("reading CSV files", sum(sizes.values()), "B") as bar:
            names, rows = _rows(self._paths, settings, bar)
            first = list(itertools.islice(rows, _INFERRED_FROM))
            if not first:
                raise ValueError(f"files: there is no row in {', '.join(paths)}")
            self._columns = _columns(names, settings, first)
            places, bad = _convert(itertools.chain(first, rows), names, self._columns)
        self._file, self._line = places[:, 0].copy(), places[:, 1].copy()
        self._reasons = bad
        if len(bad) == len(places):
            raise ValueError(f"files: no row can be read; the first: {self.describe(0)}, {bad[0]}")
        is_bad = np.zeros(len(places), bool)
        is_bad[list(bad)] = True
        with tf.device("CPU:0"):
            self._is_bad = tf.constant(is_bad)
            self._tensors = {column.name: column.tensor() for column in self._columns}

    @property
    def element_spec(self) -> Spec:
        return {column.name: tf.TensorSpec([], column.dtype) for column in self._columns}

    def __len__(self) -> int:
        return len(self._line)

    @functools.cached_property
    def row_bytes(self) -> int | None:
        """Bytes of a row, where no row is a bad one; taking rows costs next to nothing."""
        return None if self._reasons else bytes_per_row(self._tensors.values())

    def fetch(self, indices: tf.Tensor) -> Example:
        check = raise_where(
            tf.gather(self._is_bad, indices), indices, lambda i: f"{self.describe(i)}, {self._reasons[i]}"
        )
        with tf.control_dependencies([check]):
            return {name: tf.gather(tensor, indices) for name, tensor in self._tensors.items()}

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "csv", **self._identity, "length": len(self)}

    def describe(self, index: int) -> str:
        return f"{self._paths[self._file[index]]}, line {self._line[index]}"


class Settings(NamedTuple):
    """The arguments of ``csv`` beside the files."""

    types: Mapping[str, tf.DType]
    columns: Sequence[str] | None
    names: Sequence[str] | None
    dialect: Dialect
    missing: frozenset[str]
    defaults: Mapping[str, Any]
    allow_nan: bool


def csv(
    files: FilePath | Sequence[FilePath],
    *,
    types: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
    missing: Sequence[str] = ("", "NA", "N/A", "null"),
    defaults: Mapping[str, Any] | None = None,
    allow_nan: bool = True,
    encoding: str = "utf-8",
    quote: str | None = '"',
    comment: str | None = None,
    skip_initial_space: bool = False,
) -> CsvSource:
    """A source over the rows of CSV files: a scalar feature per column.

    Values are quoted where needed, also over several lines; a quote in them is written twice. The columns are read into
    memory once: 8 bytes or less per number.

    Args:
      files: one or more files with the same header, or patterns with ``*``, in order.
      types: name -> dtype (integers, floats, tf.bool: true/false/0/1 in any case, tf.string) of some columns or all.
        The others' types follow from the first 10,000 rows: bool (true, false), else int64, else float, else string.
        Integers with gaps and without a default are floats. Floats are float32 if that holds all of the column's whole
        numbers and tells all of its values apart, else float64.
      columns: which columns to read; default: all.
      names: the columns' names, for files without a header.
      delimiter: one character.
      missing: what stands for a missing value: NaN in a column of floats, an empty string in one of strings.
      defaults: name -> what to put in place of a missing value.
      allow_nan: False: a row with a missing, NaN or infinite float is bad.
      encoding: as in ``open``: "latin-1", "utf-16", …
      quote: one character; None: there are no quotes.
      comment: what a line begins with that is left out, such as "#".
      skip_initial_space: leave out spaces behind the delimiter.

    Raises:
      TypeError, ValueError: arguments that do not fit, no row, headers that differ, or no row that can be read.
      FileNotFoundError: a file, or a shard of name-00000-of-00004, is missing.
      IsADirectoryError, PermissionError: a folder in place of its files; what this user must not read.
      SourceError: a file is compressed, or in another encoding; or quotes are not closed, so that the rows behind
        cannot be told apart; names file and line. While iterating: a bad row; names file, line and column.
    """
    dialect = Dialect.checked(delimiter, encoding, quote, comment, skip_initial_space)
    dtypes = {name: _dtype(name, dtype) for name, dtype in (types or {}).items()}
    settings = Settings(dtypes, columns, names, dialect, frozenset(missing), defaults or {}, allow_nan)
    return CsvSource(list_files(files), settings)


def _dtype(name: str, given: Any) -> tf.DType:
    try:
        dtype = tf.as_dtype(given)
    except TypeError as error:
        raise TypeError(f"types[{name!r}]: expected a dtype, got {given!r}") from error
    if not (dtype.is_integer or dtype.is_floating or dtype in (tf.bool, tf.string)) or dtype.is_quantized:
        raise TypeError(f"types[{name!r}]: expected an integer, float, bool or string dtype, got {dtype.name}")
    return dtype


def _rows(paths: list[str], settings: Settings, bar: Any) -> tuple[list[str], Iterator[_Row]]:
    readers = [records(path, settings.dialect, bar) for path in paths]
    headers = [
        _checked_names(path, settings.names or _header(path, reader))
        for path, reader in zip(paths, readers, strict=True)
    ]
    for path, header in zip(paths, headers, strict=True):
        if header != headers[0]:
            raise ValueError(f"files: {path} has the columns {header}, but {paths[0]} has {headers[0]}")
    rows = (
        (file, line, values)
        for file, reader in enumerate(readers)
        for line, values in reader
        if values  # the csv module's way to say: an empty line
    )
    return headers[0], rows


def _header(path: str, reader: Iterator[tuple[int, list[str]]]) -> list[str]:
    for _, values in reader:
        if values:
            return values
    raise ValueError(f"files: {path} is empty; it needs a header, or give names=…")


def _checked_names(path: str, names: Sequence[str]) -> list[str]:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise SourceError(
                f"{path}: its header is no UTF-8: {name!r}; convert the file, or give its encoding=…, such as "
                "'latin-1'",
                code="source-format",
            ) from error
    twice = {name for name in names if list(names).count(name) > 1}
    if twice or "" in names:
        what = f"the column name {sorted(twice)[0]!r} twice" if twice else "a column without a name"
        raise ValueError(f"files: {path} has {what}; mend its header, or give names=… if it has none")
    return list(names)


def _columns(names: list[str], settings: Settings, first: list[_Row]) -> list[Column]:
    wanted = names if settings.columns is None else list(settings.columns)
    for argument, given in (("columns", wanted), ("types", settings.types), ("defaults", settings.defaults)):
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            raise ValueError(f"{argument}: there is no column {unknown!r}; there are {', '.join(names)}")
    whole = [values for _, _, values in first if len(values) == len(names)]
    columns = []
    for name in wanted:
        place = names.index(name)
        dtype, inferred = settings.types.get(name), False
        if dtype is None:
            found = [values[place] for values in whole]
            dtype, inferred = infer(found, settings.missing, settings.defaults.get(name)), True
        columns.append(
            Column(name, place, dtype, inferred, settings.missing, settings.defaults.get(name), settings.allow_nan)
        )
    return columns


def _convert(rows: Iterator[_Row], names: list[str], columns: list[Column]) -> tuple[np.ndarray, dict[int, str]]:
    """Fills the columns. Returns (file, line) of every row, int64[n, 2], and what is wrong with the bad ones."""
    places: list[np.ndarray] = []
    bad: dict[int, str] = {}
    start = 0
    while block := list(itertools.islice(rows, _AT_ONCE)):
        files, lines, values = zip(*block, strict=True)
        places.append(np.array([files, lines], np.int64).T)
        whole = [row if len(row) == len(names) else [""] * len(names) for row in values]
        for number, row in enumerate(values):
            if len(row) != len(names):
                bad[start + number] = f"{len(row)} values for {len(names)} columns"
        by_column = list(zip(*whole, strict=True))
        for column in columns:
            for number, reason in column.extend(by_column[column.place]).items():
                bad.setdefault(start + number, f"column {column.name!r}: {reason}")
        start += len(block)
    return np.concatenate(places), bad
