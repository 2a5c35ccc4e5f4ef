"""Cross-entropy of a softmax with whole labels: the loss of classifiers and language models.

.. math:: \\mathrm{loss} = \\mathrm{lse} - (1 - s)\\, x_{label} - s \\cdot \\mathrm{mean}(x)
   + z \\cdot \\mathrm{lse}^2, \\qquad \\mathrm{lse} = \\log \\sum_j e^{x_j}

with label smoothing s (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567) and z-loss z (PaLM, Chowdhery et al.
2022, https://arxiv.org/abs/2204.02311). ``TfToolkit>SoftmaxCrossEntropy`` returns, beside the losses, the largest logit
m of each row and the sum of e^(x - m), from which ``TfToolkit>SoftmaxCrossEntropyGrad`` makes the gradient:
probabilities are never stored. Both compute in float32 whatever the logits are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("softmax_cross_entropy")
_forward = _library.op("SoftmaxCrossEntropy")
_backward = _library.op("SoftmaxCrossEntropyGrad")


def softmax_cross_entropy(
    labels: Any,
    logits: Any,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    name: str | None = None,
) -> Any:
    """The loss of each row; average them as you like, over ``labels != ignore_index``, say.

    Args:
      labels: [...], int32 or int64: the class of each row, 0 … classes - 1, or ignore_index.
      logits: [..., classes]; float32, bfloat16 or float16. May hold minus infinity.
      ignore_index: the label of rows that do not count: their loss is 0, and so is their gradient, whatever they hold.
      label_smoothing: what part of the target is spread over all classes, at least 0 and less than 1.
      z_loss: the weight of log(sum(exp(logits)))^2, which keeps logits from drifting; not negative.

    Returns:
      float32 [...]. Differentiable to any order by logits.

    Raises:
      tf.errors.InvalidArgumentError: a label is neither a class nor ignore_index, or labels is not of logits' shape
        without the last axis.
      ValueError: label_smoothing or z_loss is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
    if not z_loss >= 0:
        raise ValueError(f"z_loss must not be negative, got {z_loss}")
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss}
    return _forward(logits, labels, **options, name=name).loss


@_forward.reference
def _(
    logits: tf.Tensor, labels: tf.Tensor, *, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    counts, x, own = _rows(logits, labels, ignore_index)
    largest = tf.stop_gradient(tf.reduce_max(x, axis=-1, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    total = tf.reduce_sum(tf.exp(x - largest), axis=-1)
    log_total = tf.math.log(total)
    loss = log_total - (1 - label_smoothing) * tf.reduce_sum(tf.where(own, x - largest, tf.zeros_like(x)), axis=-1)
    if label_smoothing:
        loss -= label_smoothing * tf.reduce_mean(x - largest, axis=-1)
    if z_loss:
        loss += z_loss * (largest[..., 0] + log_total) ** 2
    return tf.where(counts, loss, tf.zeros_like(loss)), largest[..., 0], total


@_forward.gradient
def _(op: Any, d_loss: Any, d_max: Any, d_sum: Any) -> tuple[Any, None]:
    """The maximum is a constant: losses do not depend on which one is taken."""
    logits, labels = op.inputs
    _, largest, total = op.outputs
    options = {name: op.get_attr(name) for name in ("ignore_index", "label_smoothing", "z_loss")}
    return _backward(logits, labels, d_loss, d_sum, largest, total, **options), None


@_backward.reference
def _(
    logits: tf.Tensor,
    labels: tf.Tensor,
    d_loss: tf.Tensor,
    d_sum: tf.Tensor,
    largest: tf.Tensor,
    total: tf.Tensor,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> tf.Tensor:
    import tensorflow as tf

    counts, x, own = _rows(logits, labels, ignore_index)
    d_loss, d_sum, largest, total = (tensor[..., tf.newaxis] for tensor in (d_loss, d_sum, largest, total))
    inner = d_loss * (1 + 2 * z_loss * (largest + tf.math.log(total))) if z_loss else d_loss
    target = (1 - label_smoothing) * tf.cast(own, tf.float32) + label_smoothing / tf.cast(tf.shape(x)[-1], tf.float32)
    dx = tf.exp(x - largest) * (inner / total + d_sum) - d_loss * target
    return tf.cast(tf.where(counts[..., tf.newaxis], dx, tf.zeros_like(dx)), logits.dtype)


def _rows(logits: tf.Tensor, labels: tf.Tensor, ignore_index: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Which rows count, their logits (0 in those that do not), and where each row's label is."""
    import tensorflow as tf

    counts = tf.cast(labels, tf.int64) != ignore_index
    wide = tf.cast(logits, tf.float32)
    wide = tf.where(counts[..., tf.newaxis], wide, tf.zeros_like(wide))
    classes = tf.cast(tf.range(tf.shape(logits)[-1]), tf.int64)
    return counts, wide, tf.cast(labels, tf.int64)[..., tf.newaxis] == classes


_backward.differentiate_reference()
