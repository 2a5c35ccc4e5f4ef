"""Where pixels go: flips, shifts and resizing."""

from collections.abc import Callable

import tensorflow as tf

from tftoolkit.custom_ops.pixels import height_width
from tftoolkit.pipelines.image.draws import uniform
from tftoolkit.pipelines.image.feature import integer, named, need_dtype, number, picture, pictures
from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example

METHODS = ("bilinear", "nearest", "area")


def random_shift(max_pixels: int) -> Vectorized:
    """Moves the image by whole pixels, each axis on its own, uniform in [-max_pixels, max_pixels]; zeros move in.

    A stage for ``Pipeline.map``; on its own it is called with (example, key). Shape and dtype of the image are kept.

    Raises:
      TypeError, ValueError: ``max_pixels`` is not an integer ≥ 0; the image is missing or not of rank 3.
    """
    integer("max_pixels", max_pixels, 0)

    def over_rows(batch: Example, keys: tf.Tensor) -> Example:
        images = pictures("random_shift", batch)
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        start = uniform_int(keys, 2, 2 * max_pixels + 1)
        margin = [max_pixels, max_pixels]
        padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
        rows = tf.gather(padded, start[:, :1] + tf.range(height), axis=1, batch_dims=1)
        shifted = tf.gather(rows, start[:, 1:] + tf.range(width), axis=2, batch_dims=1)
        return {**batch, "image": tf.ensure_shape(shifted, images.shape)}

    return Vectorized(f"random_shift(max_pixels={max_pixels})", over_rows)


def flip_horizontal() -> Vectorized:
    """Mirrors the image left to right. A stage for ``Pipeline.map``; shape and dtype are kept.

    Raises ValueError where the image is missing or not of rank 3.
    """

    def over_rows(batch: Example) -> Example:
        return {**batch, "image": tf.reverse(pictures("flip_horizontal", batch), [2])}

    return Vectorized("flip_horizontal()", over_rows)


def flip_vertical() -> Vectorized:
    """Turns the image upside down. A stage for ``Pipeline.map``; shape and dtype are kept.

    Raises ValueError where the image is missing or not of rank 3.
    """

    def over_rows(batch: Example) -> Example:
        return {**batch, "image": tf.reverse(pictures("flip_vertical", batch), [1])}

    return Vectorized("flip_vertical()", over_rows)


def random_flip(horizontal: float = 0.5, vertical: float = 0.0) -> Vectorized:
    """Mirrors the image left to right and top to bottom, each on its own, with these probabilities.

    A stage for ``Pipeline.map``. Shape and dtype of the image are kept.

    Args:
      horizontal, vertical: probabilities, 0 to 1.

    Raises:
      TypeError, ValueError: not a probability; the image is missing or not of rank 3.
    """
    flips = {2: number("horizontal", horizontal, 0, 1), 1: number("vertical", vertical, 0, 1)}

    def over_rows(batch: Example, keys: tf.Tensor) -> Example:
        images = pictures("random_flip", batch)
        draws = uniform(keys, 2)
        for axis, probability in flips.items():
            if probability:
                # Version 1 of Select takes one condition per row and copies whole rows.
                condition = draws[:, axis - 1] < probability
                images = tf.raw_ops.Select(condition=condition, x=tf.reverse(images, [axis]), y=images)
        return {**batch, "image": images}

    return Vectorized(f"random_flip(horizontal={horizontal}, vertical={vertical})", over_rows)


def resize(height: int, width: int, method: str = "bilinear") -> Callable[..., Example]:
    """Resizes the image to height × width pixels, without regard to its aspect ratio.

    Args:
      height, width: in pixels.
      method: "bilinear" with antialiasing (as in Pillow), "nearest", or "area" (mean of the pixels covered).

    A stage for ``Pipeline.map``. dtype (uint8 or float32) and channels are kept; uint8 is rounded.

    Raises:
      TypeError, ValueError: a size below 1, another method; the image is missing, not of rank 3, or of another dtype.
    """
    integer("height", height, 1)
    integer("width", width, 1)
    check_method(method)

    def stage(example: Example) -> Example:
        return {**example, "image": resized("resize", picture("resize", example), height, width, method)}

    return named(f"resize(height={height}, width={width}, method={method})", stage)


def resize_shorter_side(pixels: int, method: str = "bilinear") -> Callable[..., Example]:
    """Resizes the image so that its shorter side has ``pixels`` pixels; the aspect ratio is kept.

    With ``center_crop`` after it this is the usual preprocessing for evaluation (He et al., 2016). The longer side is
    rounded down, as in torchvision.

    A stage for ``Pipeline.map``; ``method`` and dtypes as in ``resize``.

    Raises:
      TypeError, ValueError: as of ``resize``.
    """
    integer("pixels", pixels, 1)
    check_method(method)

    def stage(example: Example) -> Example:
        image = picture("resize_shorter_side", example)
        height, width = height_width(image)
        shorter = tf.minimum(height, width)
        height, width = (tf.cast(side, tf.int64) * pixels // tf.cast(shorter, tf.int64) for side in (height, width))
        return {**example, "image": resized("resize_shorter_side", image, height, width, method)}

    return named(f"resize_shorter_side(pixels={pixels}, method={method})", stage)


def check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: must be one of {', '.join(METHODS)}")


def resized(stage: str, image: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int, method: str) -> tf.Tensor:
    need_dtype(stage, image, tf.uint8, tf.float32)
    size = tf.cast(tf.stack([height, width]), tf.int32)
    values = tf.image.resize(image, size, method, antialias=method == "bilinear")
    if image.dtype == tf.uint8 and method != "nearest":
        values = tf.round(tf.clip_by_value(values, 0.0, 255.0))
    return tf.cast(values, image.dtype)
