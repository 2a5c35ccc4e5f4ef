"""RoIAlign in plain TensorFlow: products with matrices of weights, and so in any precision."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import refusing


def forward(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    *,
    output_height: int,
    output_width: int,
    **options: Any,
) -> tf.Tensor:
    """[n, output_height, output_width, channels]"""
    boxes = tf.stop_gradient(boxes)
    along_y, along_x, count, bad = _weights(features, boxes, output_height, output_width, **options)
    pictures, none = refusing.fitting(box_indices, tf.shape(features)[0] - 1)
    bad |= none
    wide = tf.cast(tf.gather(features, pictures), boxes.dtype)
    # A pixel that is no number shows wherever it is read, also with a weight of 0, and nowhere else.
    fine = tf.math.is_finite(wide)
    touched = [tf.cast(axis.touched, boxes.dtype) for axis in (along_y, along_x)]
    spoilt = tf.einsum("niy,njx,nyxc->nijc", *touched, tf.cast(~fine, boxes.dtype)) > 0
    y = tf.einsum("niy,njx,nyxc->nijc", along_y.weights, along_x.weights, tf.where(fine, wide, 0)) / _outer(count)
    return tf.cast(tf.where(spoilt | _outer(bad), _nan(boxes.dtype), y), features.dtype)


def backward(dy: tf.Tensor, features: tf.Tensor, boxes: tf.Tensor, box_indices: tf.Tensor, **options: Any) -> tf.Tensor:
    """The gradient by the features."""
    boxes = tf.stop_gradient(boxes)
    shape = tf.shape(dy)
    along_y, along_x, count, bad = _weights(features, boxes, shape[1], shape[2], **options)
    pictures, none = refusing.fitting(box_indices, tf.shape(features)[0] - 1)
    bad |= none
    wide = tf.where(_outer(~bad), tf.cast(dy, boxes.dtype) / _outer(count), 0)
    fine = tf.math.is_finite(wide)
    touched = [tf.cast(axis.touched, boxes.dtype) for axis in (along_y, along_x)]
    spoilt = tf.einsum("niy,njx,nijc->nyxc", *touched, tf.cast(~fine, boxes.dtype)) > 0
    of_box = tf.einsum("niy,njx,nijc->nyxc", along_y.weights, along_x.weights, tf.where(fine, wide, 0))
    of_box = tf.where(spoilt, _nan(boxes.dtype), of_box)
    return tf.cast(tf.math.unsorted_segment_sum(of_box, pictures, tf.shape(features)[0]), features.dtype)


class _Axis:
    """What each bin takes from each pixel, [n, bins, length]: whether anything, and the sum of the weights."""

    def __init__(self, start: tf.Tensor, size: tf.Tensor, bins: Any, length: Any, ratio: int) -> None:
        dtype = start.dtype
        bin_size = size / tf.cast(tf.maximum(bins, 1), dtype)
        self.grid = tf.fill(tf.shape(size), tf.cast(ratio, dtype)) if ratio > 0 else tf.nn.relu(tf.math.ceil(bin_size))
        starts = start[:, None] + tf.cast(tf.range(bins), dtype) * bin_size[:, None]
        last = tf.cast(length - 1, dtype)
        pixels = tf.cast(tf.range(length), dtype)

        def step(i: tf.Tensor, weights: tf.Tensor, touched: tf.Tensor) -> tuple[tf.Tensor, ...]:
            place = starts + ((i + 0.5) * bin_size / tf.maximum(self.grid, 1))[:, None]
            inside = (place >= -1) & (place <= last + 1) & (i < self.grid)[:, None]
            place = tf.where(inside, tf.maximum(place, 0), 0)
            low = tf.minimum(tf.math.floor(place), last)
            high = tf.minimum(low + 1, last)
            part = tf.where(low < last, place - low, 0)
            at_low, at_high = (inside[..., None] & (one[..., None] == pixels) for one in (low, high))
            weights += tf.where(at_low, (1 - part)[..., None], 0) + tf.where(at_high, part[..., None], 0)
            return i + 1, weights, touched | at_low | at_high

        shape = [tf.shape(size)[0], bins, length]
        most = tf.reduce_max(tf.concat([self.grid, [0]], 0))
        start_values = (tf.constant(0, dtype), tf.zeros(shape, dtype), tf.zeros(shape, tf.bool))
        _, self.weights, self.touched = tf.while_loop(lambda i, *_: i < most, step, start_values)


def _weights(
    features: tf.Tensor,
    boxes: tf.Tensor,
    bins_y: Any,
    bins_x: Any,
    *,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[_Axis, _Axis, tf.Tensor, tf.Tensor]:
    """Of both axes; how many samples a bin has; and which boxes are not finite."""
    bad = ~tf.reduce_all(tf.math.is_finite(boxes), -1)
    places = tf.where(bad[:, None], tf.zeros_like(boxes), boxes) * tf.cast(spatial_scale, boxes.dtype) - (
        0.5 if aligned else 0.0
    )
    axes = []
    for first, bins, length in ((1, bins_y, tf.shape(features)[1]), (0, bins_x, tf.shape(features)[2])):
        start, size = places[:, first], places[:, first + 2] - places[:, first]
        axes.append(_Axis(start, size if aligned else tf.maximum(size, 1), bins, length, sampling_ratio))
    return axes[0], axes[1], tf.maximum(axes[0].grid * axes[1].grid, 1), bad


def _nan(dtype: tf.DType) -> tf.Tensor:
    return tf.constant(float("nan"), dtype)


def _outer(of_boxes: tf.Tensor) -> tf.Tensor:
    return of_boxes[:, None, None, None]
