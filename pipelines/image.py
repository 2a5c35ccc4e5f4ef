"""Image stages: each maps the feature "image" (height, width, channels) and leaves the rest of the example alone."""

import tensorflow as tf

from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.sources.source import Example
from tftoolkit.pipelines.stages import Vectorized


def random_shift(max_pixels: int) -> Vectorized:
    """Moves the image by whole pixels, each axis on its own, uniform in [-max_pixels, max_pixels]; zeros move in.

    A stage for ``Pipeline.map``; on its own it is called with (example, key). Shape and dtype of the image are kept.

    Raises:
      TypeError, ValueError: ``max_pixels`` is not an integer ≥ 0; the image is missing or not of rank 3.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int):
        raise TypeError(f"max_pixels: expected an integer, got {max_pixels!r}")
    if max_pixels < 0:
        raise ValueError(f"max_pixels={max_pixels}: must be at least 0")

    def over_rows(batch: Example, keys: tf.Tensor) -> Example:
        images = _images("random_shift", batch)
        height, width = tf.shape(images)[1], tf.shape(images)[2]
        start = uniform_int(keys, 2, 2 * max_pixels + 1)
        margin = [max_pixels, max_pixels]
        padded = tf.pad(images, [[0, 0], margin, margin, [0, 0]])
        rows = tf.gather(padded, start[:, :1] + tf.range(height), axis=1, batch_dims=1)
        shifted = tf.gather(rows, start[:, 1:] + tf.range(width), axis=2, batch_dims=1)
        return {**batch, "image": tf.ensure_shape(shifted, images.shape)}

    return Vectorized(f"random_shift(max_pixels={max_pixels})", over_rows)


def normalize(max_value: float) -> Vectorized:
    """Divides the image by ``max_value``, the value that shall become 1: any real dtype -> float32, same shape.

    A stage for ``Pipeline.map``. Use 255 for ordinary 8-bit images, 16 for scikit-learn's digits.

    Raises:
      TypeError, ValueError: ``max_value`` is not a number above 0; the image is missing or not of rank 3.
    """
    if isinstance(max_value, bool) or not isinstance(max_value, int | float):
        raise TypeError(f"max_value: expected a number, got {max_value!r}")
    if not max_value > 0:
        raise ValueError(f"max_value={max_value}: must be above 0")

    def over_rows(batch: Example) -> Example:
        images = tf.cast(_images("normalize", batch), tf.float32)
        return {**batch, "image": images / tf.constant(max_value, tf.float32)}

    return Vectorized(f"normalize(max_value={max_value})", over_rows)


def _images(stage: str, batch: Example) -> tf.Tensor:
    if "image" not in batch:
        raise ValueError(f"{stage}: the example has no feature 'image', only {sorted(batch)}")
    images = batch["image"]
    if images.shape.rank != 4:
        raise ValueError(f"{stage}: 'image' must have shape [height, width, channels], got {images.shape[1:]}")
    return images
