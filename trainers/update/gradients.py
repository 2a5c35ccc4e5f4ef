"""Gradients of a weighted mean loss, micro-batch by micro-batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import Replica


class Losses(NamedTuple):
    """What a loss function finds on a batch, one number per example (or per token), not averaged.

    The mean is taken over everything at once, so that it doesn't depend on how the batch was split.
    """

    values: tf.Tensor
    """The losses, any shape; floating point."""
    weights: tf.Tensor | None = None
    """How much each of them counts, of the same shape (e.g. 0 for padding); None: all the same."""
    metrics: Mapping[str, tf.Tensor] = {}
    """More numbers to average in the same way; of the same shape."""


_ALONE = Replica()

LossFunction = Callable[[Any, tf.Tensor], Losses | tf.Tensor]


class Gradients(NamedTuple):
    """Gradients and metrics of one batch as sums, so that those of several replicas are added field by field."""

    sums: Sequence[tf.Tensor]
    """Gradients of the weighted SUM of the losses, dense, at least float32, in the order of ``update.weights``."""
    weight: tf.Tensor
    """Sum of the weights (float32 scalar)."""
    metric_sums: dict[str, tf.Tensor]
    """Weighted sums (float32 scalars): "loss" and the metrics of :class:`Losses`."""

    def metrics(self) -> dict[str, tf.Tensor]:
        """The weighted means (float32 scalars): "loss" and the metrics of :class:`Losses`."""
        return {name: total / self.weight for name, total in self.metric_sums.items()}


def accumulated(
    function: Callable[[Any, tf.Tensor], Gradients],
    batch: Any,
    key: tf.Tensor,
    parts: int,
    weights: Sequence[tf.Variable],
    replica: Replica = _ALONE,
) -> Gradients:
    """Split ``batch`` into ``parts`` micro-batches and add up what ``function(micro_batch, key)`` finds on each.

    One after the other, also inside XLA, so that the memory needed is that of one micro-batch. Part ``i`` holds rows
    ``i``, ``i + parts``, …, as the share of a replica does (``Pipeline.shard``), and each has its own key, numbered
    over all replicas: so R replicas with A parts each see the micro-batches of one process with R * A parts.

    Args:
        weights: the variables that ``Gradients.sums`` belong to.
        replica: which one's share ``batch`` is.

    Raises:
        ValueError: the batch has no common leading dimension, or it doesn't divide by ``parts``.
    """
    size = _batch_size(batch, parts)

    def part(i: tf.Tensor | int) -> Gradients:
        number = tf.cast(replica.index + replica.count * i, tf.int32)
        return function(_part(batch, size, i, parts), tf.random.fold_in(key, number))

    if parts == 1 or tf.executing_eagerly():
        total = part(0)
        for i in range(1, parts):
            total = tf.nest.map_structure(tf.add, total, part(i))
        return total
    # A loop needs zeros to begin with, so the names of the metrics must be known before: from a trace thrown away.
    names = tf.function(lambda: part(0).metric_sums).get_concrete_function().structured_outputs.keys()
    zeros = Gradients(
        [tf.zeros(weight.shape, wide(weight.dtype)) for weight in weights],
        tf.zeros([]),
        {name: tf.zeros([]) for name in names},
    )
    _, total = tf.while_loop(
        lambda i, _: i < parts,
        lambda i, total: (i + 1, tf.nest.map_structure(tf.add, total, part(i))),
        (tf.constant(0), zeros),
        parallel_iterations=1,
        maximum_iterations=parts,
    )
    return total


def wide(dtype: tf.DType) -> tf.DType:
    """The type to add up numbers of ``dtype`` in: float64 stays, everything else is float32."""
    return tf.float64 if dtype == tf.float64 else tf.float32


class Sums(NamedTuple):
    """:class:`Losses` added up: scalars."""

    loss: tf.Tensor
    """Weighted, at least float32, differentiable."""
    count: tf.Tensor
    """How many losses there are (at least 1), of the loss's type."""
    weight: tf.Tensor
    metrics: dict[str, tf.Tensor]
    """Weighted, float32; with "loss"."""


def summed(found: Losses | tf.Tensor, parts: int) -> Sums:
    """Add up what a loss function returned.

    Raises:
        TypeError: the losses aren't floating-point numbers.
        ValueError: weights or metrics have another shape; a scalar, though the batch is split into ``parts``.
    """
    losses = found if isinstance(found, Losses) else Losses(found)
    values = tf.convert_to_tensor(losses.values)
    if not values.dtype.is_floating:
        raise TypeError(f"losses must be floating-point numbers, but are {values.dtype.name}")
    if values.shape.rank == 0 and parts > 1:
        raise ValueError(
            "the loss function returned a scalar: with accumulate or several replicas it must return one loss per "
            "example or token, unaveraged, so that unequal micro-batches count as they should"
        )
    values = tf.cast(values, wide(values.dtype))
    if losses.weights is None:
        weights = tf.ones_like(values)
    else:
        weights = tf.stop_gradient(tf.cast(_of_shape("weights", losses.weights, values), values.dtype))
    if set(losses.metrics) & {"loss"}:
        raise ValueError('a metric of Losses can\'t be named "loss", which is the mean of the losses')
    metrics = {"loss": values, **{name: _of_shape(name, value, values) for name, value in losses.metrics.items()}}
    sums = {name: tf.reduce_sum(tf.cast(value, values.dtype) * weights) for name, value in metrics.items()}
    narrow = {name: tf.cast(tf.stop_gradient(value), tf.float32) for name, value in sums.items()}
    count = tf.maximum(tf.size(values, tf.int64), 1)  # a replica's share of a last, small batch may be empty
    return Sums(sums["loss"], tf.cast(count, values.dtype), tf.cast(tf.reduce_sum(weights), tf.float32), narrow)


def _of_shape(name: str, value: Any, like: tf.Tensor) -> tf.Tensor:
    tensor = tf.convert_to_tensor(value)
    if not tensor.shape.is_compatible_with(like.shape) or tensor.shape.rank != like.shape.rank:
        raise ValueError(f"{name} of Losses must have the losses' shape {like.shape}, but has {tensor.shape}")
    return tensor


def _batch_size(batch: Any, parts: int) -> int | None:
    """The leading dimension of every tensor of the batch; None if it isn't known yet."""
    sizes = {value.shape[0] if value.shape.rank else None for value in tf.nest.flatten(batch)}
    scalars = [value for value in tf.nest.flatten(batch) if value.shape.rank == 0]
    if parts > 1 and (scalars or len(sizes - {None}) > 1):
        raise ValueError(f"to be split, all tensors of a batch need one leading dimension, but they have {sizes}")
    size = sizes.pop() if len(sizes) == 1 else None
    if size is not None and size % parts:
        raise ValueError(f"accumulate={parts} doesn't divide the batch of {size} examples")
    return size


def _part(batch: Any, size: int | None, i: tf.Tensor | int, parts: int) -> Any:
    if parts == 1:
        return batch

    def cut(value: tf.Tensor) -> tf.Tensor:
        if size is not None and isinstance(value, tf.Tensor) and value.shape.is_fully_defined():
            rest = value.shape[1:]  # XLA knows no slice with a stride that begins at a computed row
            rows = tf.reshape(value, [size // parts, parts, *rest])
            return tf.squeeze(tf.slice(rows, [0, i] + [0] * len(rest), [size // parts, 1, *rest]), 1)
        count = tf.shape(value)[0] if isinstance(value, tf.Tensor) else value.nrows(tf.int32)
        return tf.gather(value, tf.range(i, count, parts))

    return tf.nest.map_structure(cut, batch)
