"""The median filter (Tukey 1977), by sorting networks (Batcher 1968, https://doi.org/10.1145/1468075.1468121).

One op with a kernel of its own, ``TfToolkit>MedianFilter2d``, for the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("median_filter2d").op("MedianFilter2d")
_PADDINGS = ("REFLECT", "CONSTANT", "SYMMETRIC")


def median_filter2d(
    image: Any,
    filter_shape: int | tuple[int, int] = (3, 3),
    padding: str = "REFLECT",
    constant_values: float = 0,
    name: str | None = None,
) -> Any:
    """The median of the window around each pixel, each channel on its own, as ``tfa.image.median_filter2d`` gave it.

    Args:
      image: [height, width], [height, width, channels] or [batch, height, width, channels]; float32, bfloat16, float16,
        float64, uint8, int8, uint16, int16, uint32, int32, uint64 or int64.
      filter_shape: rows and columns of the window, or one number for both; at most 2^17 pixels. Of even ones the middle
        is the pixel before.
      padding: "REFLECT" (b | a b c d | c), "SYMMETRIC" (a | a b c d | d), as often as the window asks for it, or
        "CONSTANT".
      constant_values: what lies outside with "CONSTANT".

    Returns:
      A tensor of the image's shape and dtype. Of a window with an even number of pixels it is the mean of the two in
      the middle, rounded toward 0 if whole. A window with NaN gives NaN. Differentiable by the image, at plain
      TensorFlow's speed: the gradient goes to the pixel that was the median.

    Raises:
      ValueError: another rank, padding or filter_shape.
      tf.errors.InvalidArgumentError: another dtype, or constant_values are no number of it.
    """
    rows, columns = (filter_shape, filter_shape) if isinstance(filter_shape, int) else filter_shape
    if not (rows > 0 and columns > 0):
        raise ValueError(f"filter_shape must be positive, got {filter_shape}")
    if padding not in _PADDINGS:
        raise ValueError(f"padding = {padding!r}: must be one of {', '.join(_PADDINGS)}")
    if not hasattr(image, "shape"):
        import tensorflow as tf

        image = tf.convert_to_tensor(image)
    rank = len(image.shape)
    if rank not in (2, 3, 4):
        raise ValueError(f"image must have rank 2 to 4, got shape {image.shape}")
    images = image[None, :, :, None] if rank == 2 else image[None] if rank == 3 else image
    options = {"rows": rows, "columns": columns, "padding": _PADDINGS.index(padding), "constant": constant_values}
    found = _op(images, **options, name=name)
    return found[0, :, :, 0] if rank == 2 else found[0] if rank == 3 else found


@_op.reference
def _(images: tf.Tensor, *, rows: int, columns: int, padding: int, constant: float) -> tf.Tensor:
    import tensorflow as tf

    images = tf.convert_to_tensor(images)
    height, width = tf.shape(images)[1], tf.shape(images)[2]
    padded = _padded(_padded(images, 1, rows, padding, constant), 2, columns, padding, constant)
    windows = tf.stack([padded[:, r : r + height, c : c + width] for r in range(rows) for c in range(columns)], axis=-1)
    ordered = tf.sort(tf.cast(windows, tf.float32) if images.dtype in (tf.bfloat16, tf.float16) else windows, axis=-1)
    area = rows * columns
    low, high = ordered[..., (area - 1) // 2], ordered[..., area // 2]
    if area % 2 == 0:
        whole = images.dtype.is_integer
        # Half of each, and of what that leaves: whole numbers do not overflow then.
        low = _whole_middle(low, high) if whole else low / 2 + high / 2
    if images.dtype.is_floating:
        low = tf.where(tf.reduce_any(tf.math.is_nan(windows), axis=-1), tf.constant(float("nan"), low.dtype), low)
    return tf.cast(low, images.dtype)


_op.differentiate_reference()


def _whole_middle(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """(low + high) / 2 toward 0, without the sum."""
    import tensorflow as tf

    two = tf.constant(2, low.dtype)
    down = low // two + high // two + (low % two + high % two) // two  # toward minus infinity
    odd = tf.not_equal(low % two, high % two)
    return tf.where(odd & (down < tf.zeros_like(down)), down + tf.ones_like(down), down)


def _padded(images: tf.Tensor, axis: int, window: int, padding: int, constant: float) -> tf.Tensor:
    import tensorflow as tf

    before = (window - 1) // 2
    if padding == 1:
        frame = [[0, 0]] * 4
        frame[axis] = [before, window - 1 - before]
        return tf.pad(images, frame, constant_values=tf.cast(constant, images.dtype))
    size = tf.shape(images)[axis]
    period = tf.maximum(2 * size - 2 if padding == 0 else 2 * size, 1)
    place = tf.range(-before, size + window - 1 - before) % period
    place = tf.where(place < size, place, period - place - (padding != 0))
    frame = [[0, 0]] * 4
    frame[axis] = [0, 1]  # something to read where there is nothing
    return tf.gather(tf.pad(images, frame), tf.clip_by_value(place, 0, tf.maximum(size - 1, 0)), axis=axis)
