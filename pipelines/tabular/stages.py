"""Columns made ready for a model: stages for ``Pipeline.map``."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example
from tftoolkit.pipelines.tabular.statistics import Statistics, check_features


def standardize(statistics: Statistics) -> Vectorized:
    """(x - mean) / std of every column of ``statistics``: any real dtype -> float32; NaN stays NaN.

    It is computed in float64. Where the standard deviation is 0, the result is x - mean. A stage for ``Pipeline.map``.

    Args:
      statistics: of the training data, from ``fit``.

    Raises:
      ValueError: an example lacks one of the columns.
    """
    shift = statistics.mean
    scale = {name: np.where(std > 0, std, 1.0) for name, std in statistics.std.items()}

    def over_rows(rows: Example) -> Example:
        check_features("standardize", rows, shift)
        standard = {name: (tf.cast(rows[name], tf.float64) - shift[name]) / scale[name] for name in shift}
        return {**rows, **{name: tf.cast(value, tf.float32) for name, value in standard.items()}}

    return Vectorized(f"standardize({', '.join(shift)}: {_digest([shift, scale])})", over_rows)


def fill_missing(values: Mapping[str, Any], indicator: bool = True) -> Vectorized:
    """Replaces missing values: NaN in floating-point columns, "" in strings.

    Args:
      values: column -> what to put there: a constant, or ``statistics.mean`` or ``statistics.median`` for all columns
        of these statistics.
      indicator: add the column ``<name>_missing``, float32 of the same shape: 1 where the value was missing, else 0.

    Raises:
      ValueError: a column is missing or of another dtype, or a ``<name>_missing`` is there already.
    """
    filling = dict(values)

    def over_rows(rows: Example) -> Example:
        check_features("fill_missing", rows, filling)
        result = dict(rows)
        for name, value in filling.items():
            column = rows[name]
            if not (column.dtype.is_floating or column.dtype == tf.string):
                raise ValueError(f"fill_missing: {name!r} is {column.dtype.name}, which cannot be missing")
            missing = column == "" if column.dtype == tf.string else tf.math.is_nan(column)
            result[name] = tf.where(missing, tf.cast(value, column.dtype), column)
            if indicator:
                if f"{name}_missing" in rows:
                    raise ValueError(f"fill_missing: the example has a feature '{name}_missing' already")
                result[f"{name}_missing"] = tf.cast(missing, tf.float32)
        return result

    return Vectorized(f"fill_missing({', '.join(filling)}: {_digest([filling])}, indicator={indicator})", over_rows)


def one_hot(feature: str, vocabulary: Sequence[Any], unknown: str = "error") -> Vectorized:
    """Strings or integers -> float32[..., len(vocabulary)]: 1 at the place of the value in ``vocabulary``, else 0.

    Args:
      feature: the column.
      vocabulary: different values; see ``fit_vocabulary``.
      unknown: a value that is not in it is an "error" (tf.errors.InvalidArgumentError while iterating), gives "zeros",
        or a 1 at an "extra" place at the end, so that the length is len(vocabulary) + 1.

    Raises:
      TypeError, ValueError: not such arguments.
    """
    if unknown not in ("error", "zeros", "extra"):
        raise ValueError(f"unknown={unknown!r}: expected 'error', 'zeros' or 'extra'")
    known = list(vocabulary)
    if not known or len(set(known)) < len(known):
        raise ValueError(f"vocabulary: expected at least one value and each only once, got {known}")

    def over_rows(rows: Example) -> Example:
        check_features("one_hot", rows, [feature])
        column = rows[feature]
        if not (column.dtype.is_integer or column.dtype == tf.string):
            raise ValueError(f"one_hot: {feature!r} is {column.dtype.name}; expected strings or integers")
        hot = column[..., tf.newaxis] == tf.constant(known, column.dtype)
        found = tf.reduce_any(hot, axis=-1)
        if unknown == "extra":
            hot = tf.concat([hot, ~found[..., tf.newaxis]], axis=-1)
        checks = []
        if unknown == "error":
            strange = tf.boolean_mask(column, ~found)[:1]
            checks = [
                tf.debugging.Assert(tf.reduce_all(found), [f"one_hot: {feature} is not in the vocabulary:", strange])
            ]
        with tf.control_dependencies(checks):
            return {**rows, feature: tf.cast(hot, tf.float32)}

    return Vectorized(f"one_hot({feature}, {len(known)} values {_digest([known])}, unknown={unknown})", over_rows)


def hash_buckets(feature: str, buckets: int) -> Vectorized:
    """Strings or integers -> int64 in [0, buckets): a hash, the same in every process and on every platform.

    FarmHash Fingerprint64 (https://github.com/google/farmhash) of the string, or of the integer's decimal digits,
    modulo ``buckets``. A stage for ``Pipeline.map``.

    Args:
      feature: the column's name.
      buckets: how many; different values may share one.

    Raises:
      TypeError, ValueError: no such number; the column is missing, or neither strings nor integers.
    """
    integer("buckets", buckets, 1)

    def over_rows(rows: Example) -> Example:
        check_features("hash_buckets", rows, [feature])
        column = rows[feature]
        if not (column.dtype.is_integer or column.dtype == tf.string):
            raise ValueError(f"hash_buckets: {feature!r} is {column.dtype.name}; expected strings or integers")
        strings = column if column.dtype == tf.string else tf.strings.as_string(column)
        return {**rows, feature: tf.strings.to_hash_bucket_fast(strings, buckets)}

    return Vectorized(f"hash_buckets({feature}, {buckets})", over_rows)


def _digest(content: Any) -> str:
    """8 hexadecimal digits that change with the numbers or names in ``content``."""
    text = json.dumps(content, default=lambda array: np.asarray(array).tolist())
    return hashlib.sha256(text.encode()).hexdigest()[:8]
