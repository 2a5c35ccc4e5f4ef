"""Connected components of images (Rosenfeld & Pfaltz 1966, https://doi.org/10.1145/321356.321357).

One op with a kernel of its own, ``TfToolkit>ConnectedComponents``, for the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("connected_components").op("ConnectedComponents")


def connected_components(images: Any, name: str | None = None) -> Any:
    """Labels regions of equal values that are not zero, as ``tfa.image.connected_components`` did.

    Pixels above, below, left and right of each other are neighbours.

    Args:
      images: [height, width] or [batch, height, width]; bool, whole numbers, floats (NaN is a region of its own),
        or, in TensorFlow, strings, whose zero is the empty one.

    Returns:
      int32, of the images' shape: 0 where images are 0; regions are numbered from 1 through all images, in the order of
      their first pixels, row by row. Without gradient.

    Raises:
      TypeError, ValueError: images have another rank.
      tf.errors.InvalidArgumentError: another dtype, or more than 2^31 - 1 regions.
    """
    rank = len(images.shape) if hasattr(images, "shape") else None
    if rank is None or getattr(images, "dtype", None) == "string" or _is_bytes(images):
        import tensorflow as tf

        images = tf.convert_to_tensor(images)
        rank = images.shape.rank
        if images.dtype == tf.string:
            images = _numbered(images)
    if rank not in (2, 3):
        raise TypeError(f"images must have rank 2 or 3, got shape {images.shape}")
    return _op(images, name=name)


def _is_bytes(images: Any) -> bool:
    return getattr(getattr(images, "dtype", None), "kind", "") in ("S", "U", "O")


def _numbered(strings: tf.Tensor) -> tf.Tensor:
    """Equal strings get equal numbers, the empty one 0."""
    import tensorflow as tf

    flat = tf.concat([[""], tf.reshape(strings, [-1])], 0)
    return tf.reshape(tf.unique(flat, tf.int64).idx[1:], tf.shape(strings))


@_op.reference
def _(images: tf.Tensor) -> tf.Tensor:
    """Each pixel gets the smallest number of its neighbours until nothing changes."""
    import tensorflow as tf

    images = tf.convert_to_tensor(images)
    shape = tf.shape(images, tf.int64)
    each = (
        tf.reshape(images, tf.concat([[-1], shape[-2:]], 0)) if images.dtype != tf.bool else tf.cast(images, tf.uint8)
    )
    each = tf.reshape(each, tf.stack([tf.reduce_prod(shape[:-2]), shape[-2], shape[-1]]))
    count = tf.size(each, tf.int64)
    inside = tf.not_equal(each, tf.zeros_like(each))
    numbers = tf.where(inside, tf.reshape(tf.range(count), tf.shape(each)), count)

    def shifted(values: tf.Tensor, axis: int, by: int, fill: Any) -> tf.Tensor:
        frame = [[0, 0]] * 3
        frame[axis] = [max(by, 0), max(-by, 0)]
        padded = tf.pad(values, frame, constant_values=fill)
        size = tf.shape(values)[axis]
        return tf.gather(padded, tf.range(size) + max(-by, 0), axis=axis)

    ways = [(axis, by) for axis in (1, 2) for by in (1, -1)]
    joined = [inside & tf.equal(each, shifted(each, axis, by, tf.zeros([], each.dtype))) for axis, by in ways]

    def step(numbers: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        smaller = numbers
        for (axis, by), same in zip(ways, joined, strict=True):
            smaller = tf.minimum(smaller, tf.where(same, shifted(numbers, axis, by, count), count))
        return smaller, tf.reduce_any(smaller < numbers)

    numbers, _ = tf.while_loop(lambda _, changed: changed, step, [numbers, count > 0])
    roots = tf.reshape(tf.equal(numbers, tf.reshape(tf.range(count), tf.shape(each))) & inside, [-1])
    labels = tf.concat([tf.cumsum(tf.cast(roots, tf.int32)), [0]], 0)
    return tf.reshape(tf.gather(labels, tf.where(inside, numbers, count)), shape)
