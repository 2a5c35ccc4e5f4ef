"""Rows: many examples at once, feature by feature, whether or not their shapes agree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Spec


class Varied(NamedTuple):
    """Rows of one feature whose shapes differ in more than the first dimension, such as pictures."""

    values: tf.RaggedTensor  # [n, None]: each row, flattened
    shapes: tf.Tensor  # int64[n, rank]


# A feature of fixed shape is a Tensor [n, ...]; if only the first dimension varies, a RaggedTensor [n, None, ...];
# any other is Varied.
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
    mapped = tf.map_fn(one_row, (rows, keys), fn_output_signature=signature)
    return {name: _with_inner_shape(mapped[name], spec) for name, spec in after.items()}


def _with_inner_shape(feature: Any, spec: tf.TensorSpec) -> Any:
    """Ragged features come out of map_fn without their inner dimensions where there is no row."""
    if not isinstance(feature, tf.RaggedTensor) or spec.shape.rank == 1:
        return feature
    return feature.with_values(tf.reshape(feature.values, [feature.row_splits[-1], *spec.shape[1:]]))


def _unpacked(row: Any, spec: tf.TensorSpec) -> tf.Tensor:
    if isinstance(row, Varied):
        return tf.ensure_shape(tf.reshape(row.values, row.shapes), spec.shape)
    return _with_shape(row, spec)


def _packed(value: tf.Tensor, spec: tf.TensorSpec) -> Any:
    value = _with_shape(value, spec)
    if is_dense(spec) or is_ragged(spec):
        return value
    # Cast from int32, since TensorFlow warns of an "invalid graph" where a list holds what tf.shape returned.
    return Varied(tf.reshape(value, [-1]), tf.cast(tf.shape(value), tf.int64))


def _with_shape(value: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    # Every operation in the loop over the rows counts: none where the shape is known already.
    return value if value.shape.as_list() == spec.shape.as_list() else tf.ensure_shape(value, spec.shape)


def _signature(spec: tf.TensorSpec) -> Any:
    if is_dense(spec):
        return spec
    if is_ragged(spec):
        return tf.RaggedTensorSpec(spec.shape, spec.dtype, ragged_rank=0)
    return Varied(tf.RaggedTensorSpec([None], spec.dtype, ragged_rank=0), tf.TensorSpec([spec.shape.rank], tf.int64))


def pad(feature: Any, spec: tf.TensorSpec, sizes: tuple[Any, ...], value: Any) -> tf.Tensor:
    """One dense tensor [n, ...] of rows of different shapes, filled up at the ends with ``value`` (None: zeros).

    ``sizes`` is the shape to fill up to: integers, int64 scalar tensors, or None for the largest among the rows.
    """
    fill = filling(value, spec.dtype)
    if isinstance(feature, Varied):
        return _pad_varied(feature, sizes, fill)
    if isinstance(feature, tf.RaggedTensor):
        target = _fitting(tf.reduce_max(tf.concat([[0], feature.row_lengths()], 0))[tf.newaxis], sizes[:1])
        feature = feature.to_tensor(fill, shape=tf.concat([[-1], target, feature.shape[2:]], 0))
        sizes = (None, *sizes[1:])
    margins = [[0, 0], *([0, size - have if have else 0] for size, have in zip(sizes, spec.shape, strict=True))]
    return tf.pad(feature, margins, constant_values=fill) if sizes != tuple(spec.shape) else feature


def filling(value: Any, dtype: tf.DType) -> tf.Tensor:
    """The scalar to fill with; None: 0, "" or False."""
    return tf.zeros([], dtype) if value is None else tf.constant(value, dtype)


def _pad_varied(feature: Varied, sizes: tuple[Any, ...], fill: tf.Tensor) -> tf.Tensor:
    rank = len(sizes)
    target = _fitting(tf.reduce_max(tf.concat([tf.zeros([1, rank], tf.int64), feature.shapes], 0), 0), sizes)

    def one_row(row: Varied) -> tf.Tensor:
        margins = tf.stack([tf.zeros([rank], tf.int64), target - row.shapes], axis=1)
        return tf.reshape(tf.pad(tf.reshape(row.values, row.shapes), margins, constant_values=fill), [-1])

    # Ragged, since dense results of map_fn need a static shape where there is no row.
    padded = tf.map_fn(one_row, feature, fn_output_signature=tf.RaggedTensorSpec([None], fill.dtype, ragged_rank=0))
    return tf.reshape(padded.values, tf.concat([tf.shape(feature.shapes, tf.int64)[:1], target], 0))


def _fitting(largest: tf.Tensor, sizes: tuple[Any, ...]) -> tf.Tensor:
    """The shape to fill up to, int64[rank], unless an example is larger than that."""
    target = tf.stack(
        [
            have if size is None else tf.cast(size, tf.int64)
            for have, size in zip(tf.unstack(largest, len(sizes)), sizes, strict=True)
        ]
    )
    message = ["pad_to: an example is larger than what it shall be padded to; its size:", largest, "pad_to:", target]
    # A plain assertion is enough: data sets run op by op on the CPU, never inside XLA.
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(largest <= target), message)]):
        return tf.identity(target)


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
