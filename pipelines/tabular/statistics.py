"""Statistics of columns, fitted on the training split."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import source_error
from tftoolkit.pipelines.pipeline import Pipeline
from tftoolkit.pipelines.sources.source import Example, Source

_ROWS_AT_ONCE = 1024
_FORMAT = "tftoolkit tabular statistics 1"


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """Statistics of one column over its values that are not missing; arrays of the feature's shape."""

    count: np.ndarray  # int64
    mean: np.ndarray  # float64
    std: np.ndarray  # float64, of the population: the sum of squares is divided by count
    median: np.ndarray | None  # float64, if it was asked for


class Statistics:
    """Statistics of some columns, by name; see ``fit``."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Feature → mean of each of its columns."""
        return {name: column.mean for name, column in self.columns.items()}

    @property
    def std(self) -> dict[str, np.ndarray]:
        """Feature → standard deviation of each of its columns."""
        return {name: column.std for name, column in self.columns.items()}

    @property
    def median(self) -> dict[str, np.ndarray]:
        """Raises ValueError if the medians were not asked for in ``fit``."""
        found = {name: column.median for name, column in self.columns.items() if column.median is not None}
        if len(found) < len(self.columns):
            raise ValueError("median: these statistics have none; ask for them with fit(…, median=True)")
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file, from which ``load`` gets exactly the same numbers; replaces the file as a whole."""
        path = Path(path).expanduser().absolute()
        columns = {
            name: {key: None if value is None else value.tolist() for key, value in vars(column).items()}
            for name, column in self.columns.items()
        }
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            written = Path(folder) / path.name
            written.write_text(json.dumps({"format": _FORMAT, "columns": columns}, indent=1), encoding="utf-8")
            written.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Statistics":
        """Reads what ``save`` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is something else, or damaged.
        """
        data = Path(path).expanduser().read_bytes()
        try:
            content = json.loads(data)
            if content["format"] != _FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            return cls({name: _column(column) for name, column in content["columns"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"path: {path} holds no statistics ({_FORMAT!r}): {error}") from error


def fit(data: Source | Pipeline, features: Sequence[str], median: bool = False) -> Statistics:
    """Mean and standard deviation of columns, in one pass in float64 (Chan, Golub, LeVeque, 1979).

    Fit on the training split only: statistics that have seen the test split make its results too good.

    Args:
      data: a source, or a pipeline with ``.batch``, of which one epoch is read.
      features: real columns.
      median: also the medians, for ``fill_missing``; holds all values in memory, 8 bytes each.

    Raises:
      TypeError, ValueError: not such arguments, an infinite value, or a column where all values are missing.
      SourceError: an example cannot be read.
    """
    if isinstance(features, str):
        raise TypeError(f"features: expected a list of names, got {features!r}")
    moments = {name: _Moments(median) for name in features}
    for batch in _batches(data, features):
        for name, column in moments.items():
            value = batch[name]
            if not isinstance(value, tf.Tensor) or not (value.dtype.is_floating or value.dtype.is_integer):
                raise ValueError(
                    f"features: {name!r} is {value.dtype.name}; only real columns of fixed shape can be fit"
                )
            column.add(name, tf.cast(value, tf.float64).numpy())
    return Statistics({name: column.result(name) for name, column in moments.items()})


def fit_vocabulary(data: Source | Pipeline, feature: str) -> list[Any]:
    """The different values of a column of strings or integers, sorted.

    Args:
      data: read once, as in ``fit``.
      feature: the column's name.

    Raises:
      TypeError, ValueError: not such data, or no feature of this name.
      SourceError: an example cannot be read.
    """
    seen: set[Any] = set()
    for batch in _batches(data, [feature]):
        seen.update(np.unique(batch[feature].numpy().reshape(-1)).tolist())
    return sorted(value.decode() if isinstance(value, bytes) else value for value in seen)


class _Moments:
    """Count, mean and sum of squared deviations of the values so far, element by element."""

    def __init__(self, median: bool) -> None:
        self._count: Any = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._values: list[np.ndarray] | None = [] if median else None

    def add(self, name: str, values: np.ndarray) -> None:
        """``values`` float64[n, ...]; NaN is missing."""
        if np.isinf(values).any():
            raise ValueError(f"features: {name!r} holds an infinite value, so it has no mean")
        if self._values is not None:
            self._values.append(values)
        there = ~np.isnan(values)
        count = there.sum(axis=0)
        mean = np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1)
        squares = (np.where(there, values - mean, 0) ** 2).sum(axis=0)
        total = self._count + count
        delta = mean - self._mean
        self._squares = self._squares + squares + delta**2 * self._count * count / np.maximum(total, 1)
        self._mean = self._mean + delta * count / np.maximum(total, 1)
        self._count = total

    def result(self, name: str) -> Column:
        if not np.all(self._count):
            raise ValueError(f"features: all values of {name!r}, or of one of its elements, are missing")
        median = None if self._values is None else np.nanmedian(np.concatenate(self._values), axis=0)
        return Column(
            np.asarray(self._count, np.int64),
            np.asarray(self._mean, np.float64),
            np.sqrt(np.asarray(self._squares, np.float64) / self._count),
            None if median is None else np.asarray(median, np.float64),
        )


def _batches(data: Source | Pipeline, features: Sequence[str]) -> Iterator[Example]:
    pipeline = data if isinstance(data, Pipeline) else Pipeline(data).batch(_ROWS_AT_ONCE)
    check_features("fit", pipeline.element_spec, features)
    try:
        yield from pipeline.dataset(epochs=1)
    except tf.errors.OpError as error:
        raise source_error(error) or error from None


def check_features(stage: str, rows: Mapping[str, Any], features: Any) -> None:
    """Raises ValueError if ``rows`` lack one of ``features``."""
    absent = [name for name in features if name not in rows]
    if absent:
        raise ValueError(f"{stage}: the example has no feature {absent[0]!r}, only {sorted(rows)}")


def _column(stored: dict[str, Any]) -> Column:
    count, mean, std = np.array(stored["count"], np.int64), np.array(stored["mean"]), np.array(stored["std"])
    median = None if stored["median"] is None else np.array(stored["median"])
    if {one.shape for one in (count, mean, std, *([] if median is None else [median]))} != {count.shape}:
        raise ValueError("its arrays have different shapes")
    return Column(count, mean, std, median)
