"""Changes of pictures in plain TensorFlow operations: what ``rand_augment`` computes, and what other stages share.

Beside the op's folder, not in it: importing that one compiles the op, and what stands here must work where nothing can
be compiled.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

MAX_MAGNITUDE = 30
_FILL = 128  # what moves in at the borders: gray, as in the authors' code
CHANGES = (
    *("identity", "auto_contrast", "equalize", "brightness", "color", "contrast", "sharpness", "posterize", "solarize"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
)
_LUMA = (19595.0, 38470.0, 7471.0)  # 65536ths of red, green, blue


def in_tensorflow(image: tf.Tensor, numbers: tf.Tensor, negative: tf.Tensor, magnitude: int) -> tf.Tensor:
    """What ``custom_ops.rand_augment`` computes, in TensorFlow operations."""
    shape = image.shape  # of which the loop would lose what is not known
    # An empty picture has no extrema to stretch or spread.
    count = tf.where(tf.size(image) > 0, tf.size(numbers), 0)

    def change(i: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        sign = tf.where(negative[i], -1.0, 1.0)
        return i + 1, tf.ensure_shape(changed(image, numbers[i], sign, magnitude), shape)

    # Not tf.foldl: where tracing fails inside of one, no scope of a strategy can be entered any more in this process.
    return tf.while_loop(lambda i, _: i < count, change, (tf.constant(0), image))[1]


def changed(image: tf.Tensor, number: tf.Tensor | int, sign: tf.Tensor, magnitude: int) -> tf.Tensor:
    """Change ``number``, 0 … 13, in the order of ``CHANGES``; sign is -1 or 1."""
    part = magnitude / MAX_MAGNITUDE

    def moved() -> tf.Tensor:
        # One branch for all, as each adds to the time that it takes to build a pipeline.
        return affine(image, tf.gather(_matrices(image, sign, part), number - first_affine))

    def enhanced(adjust: Callable[..., tf.Tensor]) -> Callable[[], tf.Tensor]:
        factor = 1.0 + sign * (0.9 * part)
        return lambda: adjust(image, factor)

    branches = [
        lambda: tf.identity(image),
        lambda: auto_contrast(image),
        lambda: equalize(image),
        enhanced(adjust_brightness),
        enhanced(adjust_saturation),
        enhanced(adjust_contrast),
        enhanced(adjust_sharpness),
        lambda: posterize(image, 8 - round(4 * part)),
        lambda: solarize(image, math.ceil(256 * (1 - part))),
    ]
    first_affine = len(branches)
    return tf.switch_case(tf.minimum(number, first_affine), [*branches, moved])


def _matrices(image: tf.Tensor, sign: tf.Tensor, part: float) -> tf.Tensor:
    """What ``affine`` takes, for shear x and y, translate x and y, and rotate: float32[5, 6]."""
    height, width = (tf.cast(size, tf.float32) for size in height_width(image))
    shear = sign * (0.3 * part)
    right, down = (sign * tf.floor(size * (150 / 331 * part)) for size in (width, height))
    # Counter-clockwise about the middle, if sign is 1.
    cos, sin = math.cos(math.radians(30 * part)), -sign * math.sin(math.radians(30 * part))
    x, y = width / 2.0, height / 2.0
    rest = 1.0 - cos  # sums of two terms, for the reason given in affine()
    return tf.stack(
        [
            tf.stack([1.0, shear, 0.0, 0.0, 1.0, 0.0]),
            tf.stack([1.0, 0.0, 0.0, shear, 1.0, 0.0]),
            tf.stack([1.0, 0.0, right, 0.0, 1.0, 0.0]),
            tf.stack([1.0, 0.0, 0.0, 0.0, 1.0, down]),
            tf.stack([cos, sin, rest * x - sin * y, -sin, cos, rest * y + sin * x]),
        ]
    )


def affine(image: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """Pixel (x, y) becomes that at (a x + b y + c, d x + e y + f), matrix float32[6]: a … f, x and y at pixel centres.

    The convention of ``PIL.Image.transform`` with the nearest pixel.
    """
    height, width = height_width(image)
    a, b, c, d, e, f = tf.unstack(matrix)
    x, y = (tf.range(size, dtype=tf.float32) + 0.5 for size in (width, height))
    # Sums of few terms, smaller ones first: others are put into this order inside of graphs, which rounds differently.
    source_x = a * x + (b * y + c)[:, tf.newaxis]
    source_y = d * x + (e * y + f)[:, tf.newaxis]
    # One line of the fill colour around the picture takes up all that comes from outside of it.
    column, row = (
        tf.cast(tf.clip_by_value(tf.floor(source), -1.0, tf.cast(size, tf.float32)), tf.int32) + 1
        for source, size in ((source_x, width), (source_y, height))
    )
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=_FILL)
    return tf.gather(tf.reshape(framed, [-1, image.shape[-1]]), row * (width + 2) + column)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest ``bits`` bits of each value, as ``PIL.ImageOps.posterize``."""
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2 ** (8 - bits), tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts the values from ``threshold`` on, as ``PIL.ImageOps.solarize``."""
    inverted = tf.bitwise.invert(image)
    # 256, where nothing is inverted, is no uint8.
    return tf.raw_ops.Select(condition=image > threshold - 1, x=inverted, y=image) if threshold else inverted


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel so that its values span 0 … 255, as ``PIL.ImageOps.autocontrast``."""
    height, width = height_width(image)
    channels = image.shape[-1]
    # Whole lines, as broadcasting over an innermost dimension of 3 is slow.
    lines = tf.cast(tf.reshape(image, [height, width * channels]), tf.float32)
    low, high = (
        tf.cast(reduce(tf.reshape(reduce(lines, axis=0), [width, channels]), axis=0), tf.float64)
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    # float64 and this order of operations, since Pillow cuts off the fraction of what they give.
    scale = tf.where(high > low, 255.0 / (high - low), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    stretched = tf.cast(lines, tf.float64) * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(tf.cast(stretched, tf.uint8), tf.shape(image))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Spreads each channel's values so that all are about equally frequent, as ``PIL.ImageOps.equalize``."""
    return tf.stack([_equalized(channel) for channel in tf.unstack(tf.cast(image, tf.int32), axis=-1)], axis=-1)


def _equalized(channel: tf.Tensor) -> tf.Tensor:
    histogram = tf.histogram_fixed_width(channel, [0, 256], nbins=256)
    before = tf.cumsum(histogram, exclusive=True)
    # The values above the last but one step have nothing to gain: a step is a 255th of all others.
    last = tf.gather(histogram, tf.reduce_max(channel))
    step = (tf.size(channel) - last) // 255
    table = tf.minimum((step // 2 + before) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, tf.range(256)), tf.uint8)
    return tf.gather_nd(table, channel[..., tf.newaxis])


def adjust_sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """A blend with the picture smoothed by Pillow's kernel (1, in the middle 5); the border stays as it is."""
    height, width = height_width(image)
    values = tf.cast(image, tf.float32)
    inner = values[1:-1, 1:-1]
    lines = values[:-2] + values[1:-1] + values[2:]
    total = lines[:, :-2] + lines[:, 1:-1] + lines[:, 2:] + 4.0 * inner
    smoothed = tf.floor((2.0 * total + 13.0) / 26.0)  # total / 13, rounded
    behind = [[1, tf.minimum(size - 1, 1)] for size in (height, width)]  # a line of one pixel is all border
    low = values + tf.pad(smoothed - inner, [*behind, [0, 0]])
    return limited(low + factor * (values - low), tf.uint8)


# The functions below take and return pictures of uint8 (in [0, 255]) or float32 (in [0, 1]). Whatever is summed is a
# whole number of limited size, so that it is exact: neither threads nor batches have an influence on the result.


def adjust_brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """A blend with black; factor 0 is black, 1 the picture."""
    return limited(tf.cast(image, tf.float32) * factor, image.dtype)


def adjust_contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """A blend with the mean of the picture's grayscale, rounded for uint8."""
    values, gray = tf.cast(image, tf.float32), grayscale(image)
    count = tf.size(gray, tf.int64)
    if image.dtype == tf.uint8:
        mean = (2 * tf.reduce_sum(tf.cast(gray, tf.int64)) + count) // (2 * count)
    else:
        mean = tf.reduce_sum(tf.cast(tf.round(gray * 2.0**24), tf.int64)) / (count * 2**24)
    mean = tf.cast(mean, tf.float32)
    return limited(mean + factor * (values - mean), image.dtype)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """A blend with the picture's grayscale."""
    if image.shape[-1] == 1:
        return tf.identity(image)
    values, gray = tf.cast(image, tf.float32), grayscale(image, copies=3)
    return limited(gray + factor * (values - gray), image.dtype)


def grayscale(image: tf.Tensor, copies: int = 1) -> tf.Tensor:
    """Luma of ITU-R BT.601 with the weights that Pillow uses, rounded for uint8: float32 [..., copies]."""
    values = tf.cast(image, tf.float32)
    if image.shape[-1] == 1:
        return tf.repeat(values, copies, axis=-1) if copies > 1 else values
    if image.dtype == tf.uint8:
        # Exact, as all products and sums have at most 24 bits; and much faster than arithmetic with single channels.
        weights = tf.constant([[weight / 65536] * copies for weight in _LUMA], tf.float32)
        gray = tf.matmul(tf.reshape(values, [-1, 3]), weights)
        return tf.reshape(tf.floor(gray + 0.5), tf.concat([tf.shape(image)[:-1], [copies]], 0))
    red, green, blue = tf.unstack(values, axis=-1)
    gray = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]) / 65536
    return tf.stack([gray] * copies, axis=-1)


def limited(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """float32 to the values that a picture of ``dtype`` can have; like Pillow's, the fraction is cut off."""
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0 if dtype == tf.uint8 else 1.0), dtype)


def height_width(image: tf.Tensor) -> tuple[Any, Any]:
    """Height and width of [..., height, width, channels]: as Python integers where they are known, else as tensors."""
    static, dynamic = image.shape[-3:-1], tf.shape(image)
    return tuple(dynamic[axis - 3] if size is None else size for axis, size in enumerate(static))
