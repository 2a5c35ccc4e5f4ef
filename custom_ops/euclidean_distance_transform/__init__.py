"""Exact Euclidean distances to the background (Felzenszwalb & Huttenlocher 2012, https://doi.org/10.4086/toc.2012.v008a019).

One op with a kernel of its own, ``TfToolkit>EuclideanDistanceTransform``, for the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("euclidean_distance_transform").op("EuclideanDistanceTransform")


def euclidean_distance_transform(images: Any, dtype: Any = "float32", name: str | None = None) -> Any:
    """The distance of each pixel to the nearest one that is 0, in pixels; ``tfa.image.euclidean_dist_transform``.

    Args:
      images: uint8 [height, width], [height, width, 1] or [batch, height, width, 1]; 0 is background.
      dtype: of the result: float16, float32 or float64.

    Returns:
      A tensor of the images' shape. Distances are exact but for the last rounding. Where an image has no 0 they are the
      dtype's largest number. Without gradient.

    Raises:
      TypeError, ValueError: images have another rank, or several channels; another dtype.
      tf.errors.InvalidArgumentError: images are not uint8.
    """
    if not hasattr(images, "shape"):
        import numpy as np

        images = np.asarray(images, np.uint8)
    shape = tuple(images.shape)
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"images must have rank 2 to 4, got shape {shape}")
    if len(shape) == 2:
        return _op(images, dtype=_name(dtype), name=name)
    if shape[-1] != 1:
        raise ValueError(f"images must have one channel, got shape {shape}")
    return _op(images[..., 0], dtype=_name(dtype), name=name)[..., None]


def _name(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype) if not isinstance(dtype, type) else dtype.__name__)


@_op.reference
def _(images: tf.Tensor, *, dtype: str) -> tf.Tensor:
    """All distances to all pixels that are 0."""
    import tensorflow as tf

    shape = tf.shape(images)
    height, width = shape[-2], shape[-1]
    count = height * width
    pixels = tf.reshape(images, tf.stack([tf.size(images) // tf.maximum(count, 1), count]))
    at = tf.range(count)
    y, x = (tf.cast(one, tf.float64) for one in (at // tf.maximum(width, 1), at % tf.maximum(width, 1)))
    squared = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    far = tf.constant(-1.0, tf.float64)
    nearest = -tf.reduce_max(tf.where(pixels[:, None, :] == 0, -squared, tf.constant(-1e30, tf.float64)), axis=-1)
    largest = tf.constant(tf.as_dtype(dtype).max, tf.float64)
    distances = tf.where(nearest > 1e29, largest, tf.sqrt(tf.maximum(nearest, far * 0)))
    return tf.cast(tf.reshape(distances, shape), dtype)
