"""Random erasing (Zhong et al., 2020)."""

from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.pipelines.image.boxes import paste
from tftoolkit.pipelines.image.draws import below, random_bytes, uniform
from tftoolkit.pipelines.image.feature import interval, need_dtype, number, pictures
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example

_TRIES = 10


def random_erasing(
    probability: float = 0.5,
    area: Sequence[float] = (0.02, 0.4),
    aspect: Sequence[float] = (0.3, 1 / 0.3),
    value: float | None = None,
) -> Vectorized:
    """Replaces a random rectangle of the picture by noise or by one value (Zhong et al., 2020, algorithm 1).

    With ``probability``: the rectangle's share of the area is uniform in ``area``, its height / width uniform in
    ``aspect``, and all places are equally likely; after 10 tries that do not fit the picture stays as it is. Defaults
    are those of the paper.

    Args:
      probability: of erasing anything.
      area: smallest and largest share of the picture's area, in (0, 1].
      aspect: smallest and largest height / width.
      value: what the rectangle is filled with; None: noise, each value on its own, uniform in 0 … 255 (uint8) or in
        those steps in [0, 1] (float32).

    A stage for ``Pipeline.map``. Shape and dtype (uint8 or float32) are kept.

    Raises:
      TypeError, ValueError: a parameter out of range; the image is missing, not of rank 3, or of another dtype.
    """
    number("probability", probability, 0, 1)
    areas, aspects = interval("area", area, 0, 1), interval("aspect", aspect, 0)
    if value is not None:
        number("value", value, -float("inf"))

    def over_rows(batch: Example, keys: tf.Tensor) -> Example:
        images = pictures("random_erasing", batch)
        need_dtype("random_erasing", images, tf.uint8, tf.float32)
        if images.dtype == tf.uint8 and value is not None and value not in range(256):
            raise ValueError(f"random_erasing: value={value} is not a value of uint8 images; give an integer 0 … 255")
        draws = tf.reshape(uniform(keys, 4 * _TRIES + 1), [tf.shape(keys)[0], -1])
        shape = tf.shape(images)
        boxes = erased_boxes(draws, shape[1], shape[2], probability, areas, aspects)
        return {**batch, "image": paste(boxes, _filling(images, value, keys), images)}

    name = f"random_erasing(probability={probability}, area={areas}, aspect={aspects}, value={value})"
    return Vectorized(name, over_rows)


def erased_boxes(
    draws: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    probability: float,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tf.Tensor:
    """int32[n, 4]: top, left, height, width from draws float64[n, 1 + 4 × tries]; height and width 0: nothing.

    Only operations that IEEE 754 defines exactly, so that a row has no influence on another's rounding.
    """
    tries = tf.reshape(draws[:, 1:], [tf.shape(draws)[0], -1, 4])
    size = tf.cast(height, tf.float64) * tf.cast(width, tf.float64)
    target = size * (area[0] + (area[1] - area[0]) * tries[:, :, 0])
    ratio = aspect[0] + (aspect[1] - aspect[0]) * tries[:, :, 1]
    rows = tf.cast(tf.round(tf.sqrt(target * ratio)), tf.int32)
    columns = tf.cast(tf.round(tf.sqrt(target / ratio)), tf.int32)
    # As in torchvision: a rectangle as high or as wide as the picture does not count as fitting.
    fits = (rows >= 1) & (rows < height) & (columns >= 1) & (columns < width)
    first = tf.argmax(fits, axis=1)[:, tf.newaxis]
    used = tf.reduce_any(fits, axis=1, keepdims=True) & (draws[:, :1] < probability)
    rows, columns = (tf.gather(side, first, batch_dims=1) * tf.cast(used, tf.int32) for side in (rows, columns))
    places = tf.gather(tries[:, :, 2:], first, batch_dims=1)[:, 0]
    top, left = below(places[:, :1], height - rows + 1), below(places[:, 1:], width - columns + 1)
    return tf.concat([top, left, rows, columns], axis=1)


def _filling(images: tf.Tensor, value: float | None, keys: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(images)
    if value is not None:
        return tf.fill(shape, tf.constant(value, images.dtype))
    noise = tf.reshape(random_bytes(keys, tf.reduce_prod(shape[1:])), shape)
    return noise if images.dtype == tf.uint8 else tf.cast(noise, tf.float32) / 255.0
