"""Soft non-maximum suppression (Bodla et al. 2017, https://arxiv.org/abs/1704.04503): scores fall, and boxes stay.

The box M with the highest score is taken; the score of each that is left, of its class, becomes

.. math:: s_i (1 - \\mathrm{iou}(M, b_i)) \\;\\text{where iou is greater than the threshold (linear)}, \\qquad
   s_i \\exp(-\\mathrm{iou}(M, b_i)^2 / \\sigma) \\;\\text{(gaussian)}

and so on, until none is left whose score is greater than ``score_threshold``. One op, ``TfToolkit>SoftNms``, for the
CPU; it computes in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("soft_nms").op("SoftNms")


def soft_nms(
    boxes: Any,
    scores: Any,
    classes: Any = None,
    *,
    max_output: int,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    name: str | None = None,
) -> Any:
    """Returns the indices of the boxes that are taken, in that order, with the scores that they then had.

    Args:
      boxes: [..., n, 4], x1, y1, x2, y2; float32, bfloat16 or float16. Boxes of different classes never meet. One with
        x2 <= x1 or y2 <= y1 overlaps nothing; one with a NaN is left out.
      scores: [..., n], of boxes' dtype, not negative. Of equal scores the lower index comes first; NaN is left out.
      classes: [..., n], int32 or int64, any numbers; None if all boxes are of one class.
      max_output: how many boxes are taken at most.
      method: "linear" or "gaussian".
      iou_threshold: from what overlap on scores fall, if linear; 0 to 1.
      sigma: how far they fall, if Gaussian; positive.
      score_threshold: boxes whose score is not greater, at first or later, are left out; not negative.

    Returns:
      A named tuple: ``indices``, int32 [..., max_output], in the last dimension of scores, -1 behind the last one;
      ``scores_kept``, float32 of the same shape, 0 there; and ``count``, int32 [...], how many there are. Without a
      gradient (asking for one raises NotImplementedError).

    Raises:
      tf.errors.InvalidArgumentError: shapes that do not fit, or 2^31 boxes.
      ValueError: method, a threshold, sigma or max_output is out of range.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f'method must be "linear" or "gaussian", got {method!r}')
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must be from 0 to 1, got {iou_threshold}")
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if not score_threshold >= 0:
        raise ValueError(f"score_threshold must not be negative, got {score_threshold}")
    if max_output < 0:
        raise ValueError(f"max_output must not be negative, got {max_output}")
    options = {"iou_threshold": iou_threshold, "sigma": sigma, "score_threshold": score_threshold}
    gaussian = method == "gaussian"
    return _op(boxes, scores, classes, max_output=max_output, gaussian=gaussian, **options, name=name)


@_op.gradient
def _(op: Any, *_: Any) -> Any:
    raise NotImplementedError("soft_nms has no gradient: gather scores and boxes by its indices")


@_op.reference
def _(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    classes: tf.Tensor | None,
    *,
    gaussian: bool,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    max_output: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    shape = tf.shape(scores)
    outer, n = shape[:-1], shape[-1] + 1  # one dead box more, so that there is always one to point to
    sets = tf.reduce_prod(outer)
    wide = tf.float64 if scores.dtype == tf.float64 else tf.float32
    boxes = tf.pad(tf.reshape(tf.cast(boxes, wide), [sets, n - 1, 4]), [[0, 0], [0, 1], [0, 0]])
    scores = tf.pad(tf.reshape(tf.cast(scores, wide), [sets, n - 1]), [[0, 0], [0, 1]])
    classes = tf.zeros([sets, n - 1], tf.int32) if classes is None else tf.reshape(classes, [sets, n - 1])
    classes = tf.pad(classes, [[0, 0], [0, 1]])
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    threshold = tf.cast(score_threshold, wide)
    dead = tf.reduce_any(tf.math.is_nan(boxes), -1) | (tf.range(n) == n - 1)
    scores = tf.where(dead, tf.constant(-float("inf"), wide), scores)

    def step(i: tf.Tensor, scores: tf.Tensor, found: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, ...]:
        alive = scores > threshold
        some = tf.reduce_any(alive, -1, keepdims=True)
        best = tf.argmax(tf.where(alive, scores, wide.min), -1, output_type=tf.int32)[:, None]
        score = tf.gather(scores, best, batch_dims=1)
        found = tf.concat([found[:, 1:], tf.where(some, best, -1)], 1)
        kept = tf.concat([kept[:, 1:], tf.where(some, score, tf.zeros_like(score))], 1)
        box = tf.gather(boxes, best, batch_dims=1)
        low, high = tf.maximum(box[..., :2], boxes[..., :2]), tf.minimum(box[..., 2:], boxes[..., 2:])
        both = tf.reduce_prod(tf.maximum(high - low, 0), -1)
        overlap = both / (tf.gather(areas, best, batch_dims=1) + areas - both)
        if gaussian:
            touched, factor = overlap > 0, tf.exp(-tf.square(overlap) / tf.cast(sigma, wide))
        else:
            touched, factor = overlap > tf.cast(iou_threshold, wide), 1 - overlap
        touched &= tf.gather(classes, best, batch_dims=1) == classes
        lower = tf.where(touched, scores * factor, scores)
        return i + 1, tf.where(tf.range(n) == best, tf.constant(-float("inf"), wide), lower), found, kept

    start = (0, scores, tf.fill([sets, max_output], -1), tf.zeros([sets, max_output], wide))
    _, _, found, kept = tf.while_loop(lambda i, *_: i < max_output, step, start)
    counts = tf.reduce_sum(tf.cast(found >= 0, tf.int32), -1)
    whole = tf.concat([outer, [max_output]], 0)
    return tf.reshape(found, whole), tf.cast(tf.reshape(kept, whole), tf.float32), tf.reshape(counts, outer)
