"""RoI pooling (Girshick 2015, Fast R-CNN, https://arxiv.org/abs/1504.08083): the largest feature in each bin of a box.

Boxes are rounded to whole pixels. Of a box of h pixels from row t on, and alike in the columns, bin i of n takes rows

.. math:: t + \\lfloor i h / n \\rfloor \\le \\mathrm{row} < t + \\lceil (i + 1) h / n \\rceil, \\qquad
   y_{ij} = \\max_{p \\in \\mathrm{bin}_{ij}} x_p

The meaning is that of ``torchvision.ops.roi_pool``, channels last.
``TfToolkit>RoiPool`` returns the places of the maxima as well, for ``TfToolkit>RoiPoolGrad``; both are for the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("roi_pool")
_forward = _library.op("RoiPool")
_backward = _library.op("RoiPoolGrad")


def roi_pool(
    features: Any,
    boxes: Any,
    box_indices: Any,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float = 1.0,
    name: str | None = None,
) -> Any:
    """The largest feature in each of ``output_size`` bins of each box.

    Args:
      features: [batch, height, width, channels]; float32, bfloat16 or float16; fewer than 2^31 pixels.
      boxes: float32 [n, 4], x1, y1, x2, y2; multiplied by spatial_scale and rounded (halves away from 0) they are the
        first and the last pixel. One with x2 < x1 is one pixel wide.
      box_indices: [n], int32 or int64: the picture of each box, 0 … batch - 1.
      output_size: bins, (height, width) or one number for both.
      spatial_scale: what the features' size is of that of the picture in which boxes are measured.

    Returns:
      [n, height, width of output_size, channels], of features' dtype: 0 in a bin outside of the picture, NaN where
      there is one in a bin (torchvision leaves it out) and for a box with NaN or infinity. Differentiable to any order
      by the features: the gradient goes to the first maximum.

    Raises:
      tf.errors.InvalidArgumentError: an index is no picture, or shapes that do not fit. On a GPU, where plain
        TensorFlow runs, indices are not refused: a box of no picture is NaN and gives no gradient.
      ValueError: output_size is not positive.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if min(height, width) < 1:
        raise ValueError(f"output_size must be positive, got {output_size}")
    options = {"output_height": height, "output_width": width, "spatial_scale": spatial_scale}
    return _forward(features, boxes, box_indices, **options, name=name).y


@_forward.reference
def _(
    features: tf.Tensor,
    boxes: tf.Tensor,
    box_indices: tf.Tensor,
    *,
    output_height: int,
    output_width: int,
    spatial_scale: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    from tftoolkit.custom_ops.engine import refusing

    pictures, bad = refusing.fitting(box_indices, tf.shape(features)[0] - 1)
    bad |= ~tf.reduce_all(tf.math.is_finite(boxes), -1)
    corners = tf.where(bad[:, None], tf.zeros_like(boxes), boxes) * tf.cast(spatial_scale, boxes.dtype)
    corners = tf.stop_gradient(tf.sign(corners) * tf.math.floor(tf.abs(corners) + 0.5))
    shape, n = tf.shape(features), tf.shape(boxes)[0]
    inside = [
        _in_bins(corners[:, first], corners[:, first + 2], bins, length)
        for first, bins, length in ((1, output_height, shape[1]), (0, output_width, shape[2]))
    ]
    both = inside[0][:, :, None, :, None] & inside[1][:, None, :, None, :]
    both = tf.reshape(both, [n, output_height, output_width, shape[1] * shape[2], 1])
    values = tf.reshape(tf.gather(features, pictures), [n, 1, 1, shape[1] * shape[2], shape[3]])
    lowest = tf.fill(tf.shape(both), tf.constant(-float("inf"), features.dtype))
    # NaN is larger than all, and -inf in a bin larger than what is outside.
    rank = tf.where(tf.math.is_nan(values), tf.constant(float("inf"), features.dtype), values)
    candidates = both & (rank == tf.reduce_max(tf.where(both, rank, lowest), 3, keepdims=True))
    nan = both & tf.math.is_nan(values)
    candidates = tf.where(tf.reduce_any(nan, 3, keepdims=True), nan, candidates)
    # One place more, so that there is always one.
    ranks = tf.pad(tf.cast(candidates, tf.int32), [[0, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
    places = tf.where(tf.reduce_any(candidates, 3), tf.argmax(ranks, 3, output_type=tf.int32), -1)
    pixels, channels = tf.cast(shape[1] * shape[2], tf.int64), tf.cast(shape[3], tf.int64)
    flat = tf.reshape(tf.gather(features, pictures), [n, shape[1] * shape[2], shape[3]])
    flat = tf.reshape(tf.pad(flat, [[0, 0], [0, 1], [0, 0]]), [n * (shape[1] * shape[2] + 1) * shape[3]])
    wanted = tf.where(places < 0, pixels, tf.cast(places, tf.int64))
    wanted += tf.range(tf.cast(n, tf.int64))[:, None, None, None] * (pixels + 1)
    y = tf.gather(flat, wanted * channels + tf.range(channels))
    spoilt = tf.broadcast_to(bad[:, None, None, None], tf.shape(y))
    y = tf.where(spoilt, tf.constant(float("nan"), y.dtype), y)
    return y, tf.where(spoilt, -1, places)


def _in_bins(low: tf.Tensor, high: tf.Tensor, bins: int, length: tf.Tensor) -> tf.Tensor:
    """[n, bins, length]: which pixels lie in which bin."""
    import tensorflow as tf

    size = tf.maximum(high - low + 1, 1) / bins
    numbers = tf.cast(tf.range(bins), low.dtype)
    begin = tf.math.floor(numbers * size[:, None]) + low[:, None]
    end = tf.math.ceil((numbers + 1) * size[:, None]) + low[:, None]
    pixels = tf.cast(tf.range(length), low.dtype)
    return (pixels >= begin[..., None]) & (pixels < end[..., None])


@_forward.gradient
def _(op: Any, dy: Any, _: Any) -> Any:
    features, _, box_indices = op.inputs
    return _backward(dy, op.outputs[1], features, box_indices), None, None


@_backward.reference
def _(dy: tf.Tensor, places: tf.Tensor, features: tf.Tensor, box_indices: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    shape, bins = tf.shape(features), tf.shape(dy)
    pixels = shape[1] * shape[2]
    wide = tf.float64 if dy.dtype == tf.float64 else tf.float32
    channels = tf.range(shape[3])
    # Places that are none go behind the end.
    segment = box_indices[:, None, None, None] * tf.cast(pixels, box_indices.dtype) + tf.cast(places, box_indices.dtype)
    segment = segment * tf.cast(shape[3], box_indices.dtype) + tf.cast(channels, box_indices.dtype)
    size = shape[0] * pixels * shape[3]
    segment = tf.where(places < 0, tf.cast(size, box_indices.dtype), segment)
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(tf.cast(dy, wide), [tf.reduce_prod(bins)]), tf.reshape(segment, [tf.reduce_prod(bins)]), size + 1
    )
    return tf.cast(tf.reshape(sums[:-1], shape), features.dtype)


_backward.differentiate_reference()
