"""Rows: many examples at once, feature by feature, whether or not their shapes agree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Spec


class Varied(NamedTuple):
    """Rows of one feature whose shapes differ in more than the first dimension, such as pictures."""

    values: tf.RaggedTensor  # [n, None]: each row, flattened
    shapes: tf.Tensor  # int64[n, rank]


# A feature of fixed shape is a Tensor [n, ...]; one with only its first dimension unknown a RaggedTensor [n, None, ...].
Feature = tf.Tensor | tf.RaggedTensor | Varied
Rows = dict[str, Any]


def is_dense(spec: tf.TensorSpec) -> bool:
    return bool(spec.shape.is_fully_defined())


def is_ragged(spec: tf.TensorSpec) -> bool:
    return not is_dense(spec) and bool(spec.shape[1:].is_fully_defined())


def map_rows(function: Callable[..., Example], rows: Rows, keys: Any, before: Spec, after: Spec) -> Rows:
    """``function(example, keys of that row)`` over every row.

    Args:
      function: takes a dict of tensors as ``before`` describes it, returns one as ``after`` does.
      keys: anything with a leading dimension n, handed over row by row.
    """

    def one_row(elements: tuple[Rows, Any]) -> Rows:
        row, row_keys = elements
        example = {name: _unpacked(row[name], spec) for name, spec in before.items()}
        result = function(example, row_keys)
        return {name: _packed(result[name], spec) for name, spec in after.items()}

    signature = {name: _signature(spec) for name, spec in after.items()}
    # map_fn and not vectorized_map: that one rewrites the function, may round differently from a single call, and
    # runs stateless random ops through a slower loop of its own.
    return tf.map_fn(one_row, (rows, keys), fn_output_signature=signature)


def _unpacked(row: Any, spec: tf.TensorSpec) -> tf.Tensor:
    if isinstance(row, Varied):
        return tf.ensure_shape(tf.reshape(row.values, row.shapes), spec.shape)
    return tf.ensure_shape(row, spec.shape)


def _packed(value: tf.Tensor, spec: tf.TensorSpec) -> Any:
    value = tf.ensure_shape(value, spec.shape)
    if is_dense(spec) or is_ragged(spec):
        return value
    return Varied(tf.reshape(value, [-1]), tf.shape(value, tf.int64))


def _signature(spec: tf.TensorSpec) -> Any:
    if is_dense(spec):
        return spec
    if is_ragged(spec):
        return tf.RaggedTensorSpec(spec.shape, spec.dtype, ragged_rank=0)
    return Varied(
        tf.RaggedTensorSpec([None], spec.dtype, ragged_rank=0), tf.TensorSpec([spec.shape.rank], tf.int64)
    )


def pad(feature: Any, spec: tf.TensorSpec, sizes: tuple[int | None, ...], value: Any) -> tf.Tensor:
    """One dense tensor [n, ...] of rows of different shapes, filled up at the ends with ``value``.

    ``sizes`` is the shape to fill up to; None stands for the largest among the rows.
    """
    if is_dense(spec) and sizes == tuple(spec.shape):
        return feature
    fill = tf.constant(value, spec.dtype)
    if isinstance(feature, tf.RaggedTensor):
        longest = tf.reduce_max(tf.concat([[0], feature.row_lengths()], 0))
        with tf.control_dependencies([_check_fits(longest[tf.newaxis], sizes[:1])]):
            return feature.to_tensor(fill, shape=[None, sizes[0], *feature.shape[2:]])
    if isinstance(feature, Varied):
        return _pad_varied(feature, sizes, fill)
    dense = tf.pad(
        feature, [[0, 0], *([0, size - have] for size, have in zip(sizes, spec.shape, strict=True))], constant_values=fill
    )
    return dense


def _pad_varied(feature: Varied, sizes: tuple[int | None, ...], fill: tf.Tensor) -> tf.Tensor:
    rank = len(sizes)
    largest = tf.reduce_max(tf.concat([tf.zeros([1, rank], tf.int64), feature.shapes], 0), 0)
    with tf.control_dependencies([_check_fits(largest, sizes)]):
        target = tf.stack([largest[i] if size is None else tf.constant(size, tf.int64) for i, size in enumerate(sizes)])

    def one_row(row: Varied) -> tf.Tensor:
        margins = tf.stack([tf.zeros([rank], tf.int64), target - row.shapes], axis=1)
        return tf.pad(tf.reshape(row.values, row.shapes), margins, constant_values=fill)

    padded = tf.map_fn(one_row, feature, fn_output_signature=tf.TensorSpec(sizes, fill.dtype))
    return tf.reshape(padded, tf.concat([tf.shape(feature.shapes, tf.int64)[:1], target], 0))


def _check_fits(largest: tf.Tensor, sizes: tuple[int | None, ...]) -> tf.Operation:
    allowed = tf.constant([tf.int64.max if size is None else size for size in sizes], tf.int64)
    # A plain assertion is enough: data sets run op by op on the CPU, never inside XLA.
    return tf.debugging.Assert(
        tf.reduce_all(largest <= allowed),
        ["pad_to: an example is larger than what it shall be padded to; its size:", largest, "pad_to:", allowed],
    )


def group(rows: Rows, spec: Spec, size: int) -> Rows:
    """[n * size, ...] -> [n, size, ...] for every feature; all of them are dense."""
    return {name: tf.reshape(rows[name], [-1, size, *one.shape]) for name, one in spec.items()}


def gather(rows: Mapping[str, Any], indices: tf.Tensor) -> Rows:
    """Some of the rows."""

    def one(feature: Any) -> Any:
        if isinstance(feature, Varied):
            return Varied(tf.gather(feature.values, indices), tf.gather(feature.shapes, indices))
        return tf.gather(feature, indices)

    return {name: one(feature) for name, feature in rows.items()}


def concat(parts: list[Rows]) -> Rows:
    """The rows of all parts, one after the other; at least one part."""

    def one(features: list[Any]) -> Any:
        if isinstance(features[0], Varied):
            return Varied(tf.concat([f.values for f in features], 0), tf.concat([f.shapes for f in features], 0))
        return tf.concat(features, 0)

    return {name: one([part[name] for part in parts]) for name in parts[0]}
