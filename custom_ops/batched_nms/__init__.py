"""Non-maximum suppression within classes: of boxes that overlap, the one with the highest score stays.

By falling score (greedily: Neubeck & Van Gool 2006, https://doi.org/10.1109/ICPR.2006.479), a box is kept unless a kept
box of its class overlaps it: their intersection over union is greater than ``iou_threshold``.

.. math:: i \\text{ is kept} \\iff \\nexists\\, j \\text{ kept}: s_j \\ge s_i,\\; c_j = c_i,\\;
   \\frac{|b_i \\cap b_j|}{|b_i \\cup b_j|} > \\mathrm{threshold}

Of equal scores the lower index comes first. The meaning is that of ``torchvision.ops.batched_nms``, with outputs of a
fixed size, which XLA needs. One op, ``TfToolkit>BatchedNms``, for the CPU; it computes in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("batched_nms").op("BatchedNms")
_LOWEST = -3.4028234663852886e38  # of float32: only minus infinity is less


def batched_nms(
    boxes: Any,
    scores: Any,
    classes: Any = None,
    *,
    iou_threshold: float,
    max_output: int,
    score_threshold: float | None = None,
    name: str | None = None,
) -> Any:
    """Returns the indices of the boxes that are kept, by falling score.

    Args:
      boxes: [..., n, 4], x1, y1, x2, y2; float32, bfloat16 or float16. Boxes of different classes never meet. One with
        x2 <= x1 or y2 <= y1 overlaps nothing; one with a NaN is left out.
      scores: [..., n], of boxes' dtype. Of equal scores the lower index comes first; NaN is left out.
      classes: [..., n], int32 or int64, any numbers; None if all boxes are of one class.
      iou_threshold: what two kept boxes of a class may overlap, intersection over union; 0 to 1.
      max_output: how many boxes are kept at most.
      score_threshold: boxes whose score is not greater are left out; None for those of minus infinity.

    Returns:
      A named tuple: ``indices``, int32 [..., max_output], in the last dimension of scores, -1 behind the last one; and
      ``count``, int32 [...], how many there are. Both are without a gradient: gather boxes and scores by the indices.

    Raises:
      tf.errors.InvalidArgumentError: shapes that do not fit, or 2^31 boxes.
      ValueError: a threshold or max_output is out of range.
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be from 0 to 1, got {iou_threshold}")
    if max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")
    threshold = _LOWEST if score_threshold is None else score_threshold
    if not _LOWEST <= threshold <= -_LOWEST:
        raise ValueError(f"score_threshold must be a finite number, got {score_threshold}")
    options = {"iou_threshold": iou_threshold, "max_output": max_output, "score_threshold": threshold}
    return _op(boxes, scores, classes, **options, name=name)


@_op.reference
def _(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor | None,
    *,
    iou_threshold: float,
    max_output: int,
    score_threshold: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    shape = tf.shape(scores)
    # With one dead box more, so that there is always one to point to.
    boxes, scores = _one_more(boxes, 2), _one_more(scores, 1)
    wide = tf.float64 if scores.dtype == tf.float64 else tf.float32
    boxes, scores = tf.cast(boxes, wide), tf.cast(scores, wide)
    sets, n = tf.shape(scores)[0], tf.shape(scores)[1]
    classes = tf.zeros([sets, n], tf.int32) if classes is None else _one_more(classes, 1)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    alive = (scores > tf.cast(score_threshold, wide)) & ~tf.reduce_any(tf.math.is_nan(boxes), -1)
    alive &= tf.range(n) < n - 1

    def step(i: tf.Tensor, alive: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, ...]:
        best = tf.argmax(tf.where(alive, scores, wide.min), -1, output_type=tf.int32)[:, None]
        found = tf.concat([found[:, 1:], tf.where(tf.reduce_any(alive, -1, keepdims=True), best, -1)], 1)
        box = tf.gather(boxes, best, batch_dims=1)
        low, high = tf.maximum(box[..., :2], boxes[..., :2]), tf.minimum(box[..., 2:], boxes[..., 2:])
        both = tf.reduce_prod(tf.maximum(high - low, 0), -1)
        overlap = both / (tf.gather(areas, best, batch_dims=1) + areas - both)
        gone = (tf.cast(overlap, tf.float64) > iou_threshold) & (tf.gather(classes, best, batch_dims=1) == classes)
        return i + 1, alive & ~gone & (tf.range(n) != best), found

    start = (0, alive, tf.fill([sets, max_output], -1))
    _, _, found = tf.while_loop(lambda i, *_: i < max_output, step, start)
    counts = tf.reduce_sum(tf.cast(found >= 0, tf.int32), -1)
    return tf.reshape(found, tf.concat([shape[:-1], [max_output]], 0)), tf.reshape(counts, shape[:-1])


def _one_more(values: tf.Tensor, inner: int) -> tf.Tensor:
    """[..., n, …] → [sets, n + 1, …] with ``inner`` dimensions behind the first; zeros are added."""
    import tensorflow as tf

    outer = tf.rank(values) - inner
    flat = tf.reshape(values, tf.concat([[tf.reduce_prod(tf.shape(values)[:outer])], tf.shape(values)[outer:]], 0))
    return tf.pad(flat, [[0, 0], [0, 1], [0, 0]][: inner + 1])
