"""Gradients of tables of which a step uses few rows: ``tf.IndexedSlices``, rows and where they belong."""

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from tftoolkit.trainers.update.gradients import wide

Gradient: TypeAlias = tf.Tensor | tf.IndexedSlices


def mapped(function: Callable[[tf.Tensor], tf.Tensor], gradient: Gradient) -> Gradient:
    """``function`` of each number of a gradient."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)


def divided(gradient: Gradient, by: tf.Tensor) -> Gradient:
    return mapped(lambda one: one / tf.cast(by, one.dtype), gradient)


def shrunk(gradient: Gradient, scale: tf.Tensor) -> Gradient:
    """Times a float32 scalar, which isn't rounded to bfloat16."""

    def product(one: tf.Tensor) -> tf.Tensor:
        dtype = wide(one.dtype)
        return tf.cast(tf.cast(one, dtype) * tf.cast(scale, dtype), one.dtype)

    return mapped(product, gradient)


def summed(slices: tf.IndexedSlices) -> tf.IndexedSlices:
    """With sorted indices, the rows of one index replaced by their sum, in at least float32.

    There are as many rows as before, so that XLA knows how many: those of one index all hold the sum, and whatever is
    computed of it is written to one place several times.
    """
    order = tf.argsort(slices.indices, stable=True)
    indices = tf.gather(slices.indices, order)
    rows = tf.gather(tf.cast(slices.values, wide(slices.values.dtype)), order)
    number = tf.cumsum(tf.cast(_begins(indices), tf.int32)) - 1
    sums = tf.math.unsorted_segment_sum(rows, number, tf.size(indices))
    return tf.IndexedSlices(tf.gather(sums, number), indices, slices.dense_shape)


def each_once(slices: tf.IndexedSlices) -> tf.Tensor:
    """The rows of what ``summed`` returned, but zeros in place of those that are there again."""
    begins = tf.reshape(_begins(slices.indices), [-1] + [1] * (slices.values.shape.rank - 1))
    return tf.where(begins, slices.values, tf.zeros_like(slices.values))


def _begins(indices: tf.Tensor) -> tf.Tensor:
    """Whether another number stands before each of sorted numbers."""
    return tf.concat([tf.ones_like(indices[:1], tf.bool), indices[1:] != indices[:-1]], 0)
