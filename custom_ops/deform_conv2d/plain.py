"""Deformable convolution in plain TensorFlow: columns, then a product."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def forward(given: Any, offset: Any, weight: Any, bias: Any, mask: Any, **steps: int) -> tf.Tensor:
    """[batch, out_height, out_width, out_channels]; arithmetic in float32, or float64 for that."""
    dtype = tf.float64 if given.dtype == tf.float64 else tf.float32
    x, offset, weight, bias, mask = (
        None if one is None else tf.cast(one, dtype) for one in (given, offset, weight, bias, mask)
    )
    return tf.cast(_convolve(x, offset, weight, bias, mask, **steps), given.dtype)


def gradients(dy: Any, x: Any, offset: Any, weight: Any, mask: Any, **steps: int) -> list[Any]:
    """By x, offset, weight, bias and, unless it is None, mask."""
    dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
    inputs = [tf.cast(one, dtype) for one in (x, offset, weight, *([] if mask is None else [mask]))]
    wide = tf.cast(dy, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        given = None if mask is None else inputs[3]
        y = _convolve(inputs[0], inputs[1], inputs[2], None, given, _multiply, **steps)
    found = tape.gradient(y, inputs, output_gradients=wide)
    pairs = tf.reshape(inputs[1], [*tf.unstack(tf.shape(offset)[:3]), tf.shape(offset)[3] // 2, 2])
    nowhere = tf.reduce_any(tf.math.is_nan(pairs), -1, keepdims=True) & tf.ones_like(pairs, tf.bool)
    if mask is not None:
        nowhere |= tf.math.is_nan(inputs[3])[..., None]
    found[1] = tf.where(tf.reshape(nowhere, tf.shape(offset)), tf.constant(float("nan"), dtype), found[1])
    found.insert(3, tf.reduce_sum(wide, [0, 1, 2]))
    return [tf.cast(one, x.dtype) for one in found]


def _multiply(mask: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """A point outside of the picture has no gradient, whatever its column has; NaN in the mask is NaN there, too."""
    return tf.math.multiply_no_nan(mask, columns) + tf.stop_gradient(0 * mask)


def _convolve(
    x: Any, offset: Any, weight: Any, bias: Any, mask: Any, multiply: Any = tf.multiply, **steps: int
) -> tf.Tensor:
    height, width, group_channels, outputs = tf.unstack(tf.shape(weight))
    batch, out_height, out_width, offsets = tf.unstack(tf.shape(offset))
    channels = tf.shape(x)[3]
    points, groups = height * width, channels // group_channels
    offset_groups = offsets // (2 * points)
    columns = _columns(x, offset, height, width, offset_groups, **steps)
    if mask is not None:
        columns = multiply(tf.reshape(mask, [batch, out_height, out_width, offset_groups, points, 1]), columns)
    columns = tf.transpose(columns, [0, 1, 2, 4, 3, 5])
    columns = tf.reshape(columns, [batch, out_height, out_width, points, groups, group_channels])
    kernel = tf.reshape(weight, [points, group_channels, groups, outputs // groups])
    y = tf.reshape(tf.einsum("nhwpgc,pcgo->nhwgo", columns, kernel), [batch, out_height, out_width, outputs])
    return y if bias is None else y + bias


def _columns(
    x: tf.Tensor,
    offset: tf.Tensor,
    height: Any,
    width: Any,
    groups: Any,
    *,
    stride_y: int,
    stride_x: int,
    padding_y: int,
    padding_x: int,
    dilation_y: int,
    dilation_x: int,
) -> tf.Tensor:
    """[batch, out_height, out_width, offset groups, points, channels of one]: x where the offsets move the kernel."""
    dtype = x.dtype
    batch, out_height, out_width, _ = tf.unstack(tf.shape(offset))
    _, rows, columns, channels = tf.unstack(tf.shape(x))
    points = tf.range(height * width)
    moves = tf.reshape(offset, [batch, out_height, out_width, groups, height * width, 2])
    base_y = (tf.range(out_height) * stride_y - padding_y)[:, None] + points // width * dilation_y
    base_x = (tf.range(out_width) * stride_x - padding_x)[:, None] + points % width * dilation_x
    y = tf.cast(base_y, dtype)[:, None, None] + moves[..., 0]
    x_place = tf.cast(base_x, dtype)[:, None] + moves[..., 1]
    low_y, low_x = tf.stop_gradient(tf.math.floor(y)), tf.stop_gradient(tf.math.floor(x_place))
    part_y, part_x = y - low_y, x_place - low_x
    # Two rows by two columns of pixels lie around each point.
    near = tf.stack([1 - part_y, part_y], -1)[..., None] * tf.stack([1 - part_x, part_x], -1)[..., None, :]
    at_y, at_x = tf.stack([low_y, low_y + 1], -1)[..., None], tf.stack([low_x, low_x + 1], -1)[..., None, :]
    inside = (at_y >= 0) & (at_y < tf.cast(rows, dtype)) & (at_x >= 0) & (at_x < tf.cast(columns, dtype))
    near = tf.where(inside, near, tf.zeros_like(near))  # far away a part is no number
    place = tf.where(inside, at_y * tf.cast(columns, dtype) + at_x, tf.zeros_like(near))
    place = tf.transpose(tf.cast(place, tf.int32), [0, 3, 1, 2, 4, 5, 6])  # groups before pixels
    pictures = tf.reshape(x, [batch, rows * columns, groups, channels // groups])
    pictures = tf.pad(tf.transpose(pictures, [0, 2, 1, 3]), [[0, 0], [0, 0], [0, 1], [0, 0]])  # never empty
    values = tf.transpose(tf.gather(pictures, place, batch_dims=2), [0, 2, 3, 1, 4, 5, 6, 7])
    values = tf.where(inside[..., None], values, tf.zeros_like(values))
    found = tf.reduce_sum(values * near[..., None], [5, 6])
    nowhere = tf.math.is_nan(y + x_place)
    return tf.where(nowhere[..., None], tf.constant(float("nan"), dtype), found)
