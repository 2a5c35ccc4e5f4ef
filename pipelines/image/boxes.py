"""Rectangles in pictures, one per row, as random erasing and CutMix need them."""

import tensorflow as tf


def paste(boxes: tf.Tensor, inside: tf.Tensor, outside: tf.Tensor) -> tf.Tensor:
    """``inside`` within each row's box, ``outside`` elsewhere; both [n, height, width, channels] of one dtype.

    boxes: int32[n, 4]: top, left, height, width; a box of height or width 0 holds nothing.
    """
    shape = tf.shape(outside)
    top, left, rows, columns = (boxes[:, i : i + 1] for i in range(4))
    y, x = tf.range(shape[1]), tf.repeat(tf.range(shape[2]), shape[3])
    in_rows = (y >= top) & (y < top + rows)
    in_columns = (x >= left) & (x < left + columns)
    # Whole lines, as broadcasting over an innermost dimension of 3 is slow; Select without broadcasting (version 1), as
    # tf.where is several times slower.
    mask = tf.reshape(in_rows[:, :, tf.newaxis] & in_columns[:, tf.newaxis, :], shape)
    return tf.ensure_shape(tf.raw_ops.Select(condition=mask, x=inside, y=outside), outside.shape)
