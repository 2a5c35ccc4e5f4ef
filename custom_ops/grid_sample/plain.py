"""What the grid_sample ops compute, in plain TensorFlow; places.h has the rules in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

NEAREST, BILINEAR, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
HALF_PIXELS, CORNERS, PIXELS = range(3)
_CUBIC = -0.75  # a of Keys (1981)


class _Taps(NamedTuple):
    """Pixels of each point, in a last axis: their numbers or -1, their weights, and the weights' derivatives.

    Along one axis of the images, or all: then numbers count all pixels, and there are derivatives by each coordinate.
    """

    pixels: tf.Tensor
    weights: tf.Tensor
    slopes: list[tf.Tensor]


def sample(dims: int, images: tf.Tensor, grid: tf.Tensor, mode: int, padding: int, space: int) -> tf.Tensor:
    """The forward op, for so many dimensions."""
    taps = _taps(dims, images, grid, mode, padding, space)
    values = tf.gather(_flat(images), _or_zeros(images, taps.pixels), batch_dims=1)
    return tf.cast(tf.reduce_sum(taps.weights[..., tf.newaxis] * values, axis=-2), images.dtype)


def gradients(
    dims: int, dy: tf.Tensor, images: tf.Tensor, grid: tf.Tensor, mode: int, padding: int, space: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The backward op."""
    taps, wide = _taps(dims, images, grid, mode, padding, space), tf.cast(dy, tf.float32)[..., tf.newaxis, :]
    pixels = _or_zeros(images, taps.pixels)
    products = tf.reduce_sum(wide * tf.gather(_flat(images), pixels, batch_dims=1), axis=-1)
    outside = taps.pixels < 0  # takes no part of a NaN in dy
    products = tf.zeros_like(products) if mode == NEAREST else tf.where(outside, tf.zeros_like(products), products)
    dgrid = tf.stack([tf.reduce_sum(products * by, axis=-1) for by in taps.slopes], axis=-1)
    nowhere = tf.math.is_nan(taps.weights[..., :1])
    dgrid = tf.where(nowhere, tf.constant(float("nan"), dgrid.dtype), dgrid)
    dimages = _scattered(images, pixels, taps.weights[..., tf.newaxis] * wide)
    return tf.cast(dimages, images.dtype), tf.cast(dgrid, grid.dtype)


def _taps(dims: int, images: tf.Tensor, grid: tf.Tensor, mode: int, padding: int, space: int) -> _Taps:
    sizes = tf.shape(images)[1:-1]
    found = _taps_of_axis(grid[..., dims - 1], sizes[0], mode, padding, space)
    for axis in range(1, dims):
        size = tf.cast(sizes[axis], tf.int64)
        more = _taps_of_axis(grid[..., dims - 1 - axis], sizes[axis], mode, padding, space)
        pixels, inside = _pairs(tf.add, found.pixels * size, more.pixels), _pairs(tf.minimum, found.pixels, more.pixels)
        found = _Taps(
            tf.where(inside < 0, tf.constant(-1, tf.int64), pixels),
            _pairs(tf.multiply, found.weights, more.weights),
            [
                _pairs(tf.multiply, found.weights, more.slopes[0]),
                *(_pairs(tf.multiply, slope, more.weights) for slope in found.slopes),
            ],
        )
    return found


def _pairs(function: Callable[..., tf.Tensor], one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """The function of all pairs of the last axes, which become one."""
    found = function(one[..., :, tf.newaxis], other[..., tf.newaxis, :])
    return tf.reshape(found, tf.concat([tf.shape(one)[:-1], [one.shape[-1] * other.shape[-1]]], 0))


def _taps_of_axis(g: tf.Tensor, size: tf.Tensor, mode: int, padding: int, space: int) -> _Taps:
    at, slope = (one[..., tf.newaxis] for one in _place(g, tf.cast(size, g.dtype), mode, padding, space))
    nowhere = tf.math.is_nan(at)
    known = tf.stop_gradient(tf.where(nowhere, tf.zeros_like(at), at))
    whole = tf.round(known) if mode == NEAREST else tf.floor(known)
    first, fraction = tf.cast(whole, tf.int64), at - whole
    if mode == NEAREST:
        weights, slopes = tf.where(nowhere, at, tf.ones_like(at)), tf.zeros_like(at)
        offsets = [0]
    elif mode == BILINEAR:
        weights, slopes = tf.concat([1 - fraction, fraction], -1), tf.concat([-slope, slope], -1)
        offsets = [0, 1]
    else:
        offsets = [-1, 0, 1, 2]
        distance = fraction - tf.constant(offsets, fraction.dtype)
        weights, slopes = _cubic(distance), slope * _cubic_slope(distance)
    pixels = first + tf.constant(offsets, tf.int64)
    pixels = _pixels(pixels, tf.cast(size, tf.int64), mode, padding, space)
    return _Taps(tf.where(nowhere, tf.constant(-1, tf.int64), pixels), weights, [slopes])


def _place(g: tf.Tensor, size: tf.Tensor, mode: int, padding: int, space: int) -> tuple[tf.Tensor, tf.Tensor]:
    """In pixels, and its derivative."""
    if space == PIXELS:
        at, slope = tf.identity(g), tf.ones_like(g)
    elif space == CORNERS:
        at, slope = (g + 1) * 0.5 * (size - 1), (size - 1) * 0.5 * tf.ones_like(g)
    else:
        at, slope = ((g + 1) * size - 1) * 0.5, size * 0.5 * tf.ones_like(g)
    if padding == REFLECTION:
        low, span = (0.0, size - 1) if space == CORNERS else (-0.5, size)
        period = tf.maximum(2 * span, 1)
        from_low = at - low
        from_low -= period * tf.stop_gradient(tf.floor(from_low / period))
        from_low = _clipped(from_low, tf.zeros_like(size), period)[0]
        if mode != BICUBIC:
            back = from_low >= span
            from_low, slope = tf.where(back, 2 * span - from_low, from_low), tf.where(back, -slope, slope)
        single = span <= 0
        at = tf.where(single, tf.stop_gradient(at - at), from_low + low)
        slope = tf.where(single, tf.zeros_like(slope), slope)
    if mode != BICUBIC and padding != ZEROS:
        # As in PyTorch, the ends are outside.
        at, inside = _clipped(at, tf.zeros_like(size), size - 1)
        return at, tf.where(inside, slope, tf.zeros_like(slope))
    return _clipped(at, -5 * tf.ones_like(size), size + 4)[0] if padding != REFLECTION else at, slope


def _clipped(at: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """NaN stays NaN. Also where nothing was clipped."""
    before, behind = at <= low, at >= high
    return tf.where(before, low, tf.where(behind, high, at)), ~(before | behind)


def _pixels(i: tf.Tensor, size: tf.Tensor, mode: int, padding: int, space: int) -> tf.Tensor:
    """The pixels that stand for pixels i of the padded axis; -1 for none."""
    if mode == BICUBIC and padding == BORDER:
        i = tf.clip_by_value(i, 0, tf.maximum(size - 1, 0))
    if mode == BICUBIC and padding == REFLECTION:
        period = tf.maximum(2 * size - 2 if space == CORNERS else 2 * size, 1)
        i = i % period
        i = tf.where(i < size, i, period - i - (space != CORNERS))
    return tf.where((i >= 0) & (i < size), i, tf.constant(-1, i.dtype))


def _cubic(x: tf.Tensor) -> tf.Tensor:
    x = tf.abs(x)
    outer = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return tf.where(x <= 1, ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1, outer)


def _cubic_slope(x: tf.Tensor) -> tf.Tensor:
    sign, x = tf.where(x < 0, -1.0, tf.ones_like(x)), tf.abs(x)
    outer = (3 * _CUBIC * x - 10 * _CUBIC) * x + 8 * _CUBIC
    return sign * tf.where(x <= 1, (3 * (_CUBIC + 2) * x - 2 * (_CUBIC + 3)) * x, outer)


def _flat(images: tf.Tensor) -> tf.Tensor:
    """[batch, pixels + 1, channels]: the last pixel, of zeros, is what lies outside."""
    shape = tf.shape(images)
    pixels = tf.reduce_prod(shape[1:-1])
    flat = tf.reshape(tf.cast(images, tf.float32), [shape[0], pixels, shape[-1]])
    return tf.pad(flat, [[0, 0], [0, 1], [0, 0]])


def _or_zeros(images: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """The pixels' numbers in ``_flat``."""
    count = tf.reduce_prod(tf.cast(tf.shape(images)[1:-1], tf.int64))
    return tf.where(pixels < 0, count, pixels)


def _scattered(images: tf.Tensor, pixels: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sums what each pixel gets; of what lies outside, none gets anything."""
    shape = tf.cast(tf.shape(images), tf.int64)
    each, channels = tf.reduce_prod(shape[1:-1]) + 1, shape[-1]
    start = tf.range(shape[0]) * each
    ids = (
        tf.reshape(pixels, tf.stack([shape[0], tf.size(pixels, tf.int64) // tf.maximum(shape[0], 1)])) + start[:, None]
    )
    rows = tf.reshape(values, tf.stack([tf.size(ids, tf.int64), channels]))
    total = tf.math.unsorted_segment_sum(rows, tf.reshape(ids, [-1]), shape[0] * each)
    return tf.reshape(tf.reshape(total, tf.stack([shape[0], each, channels]))[:, :-1], tf.shape(images))
