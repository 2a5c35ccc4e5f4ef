"""fused_linear_cross_entropy in TensorFlow's operations, with all logits; and the op's call with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def losses(
    inputs: tf.Tensor,
    weight: tf.Tensor,
    bias: tf.Tensor | None,
    labels: tf.Tensor,
    class_weight: tf.Tensor | None,
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Losses, log-sum-exps, the losses' sum, and the sum of the class weights of the labels that count."""
    counts = tf.cast(labels, tf.int64) != ignore_index
    logits = _logits(inputs, weight, bias, counts, logit_softcap)
    target, of_label = _target(labels, weight, class_weight, label_smoothing, logits.dtype)
    largest = tf.stop_gradient(tf.reduce_max(logits, axis=-1, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    log_sum = tf.math.log(tf.reduce_sum(tf.exp(logits - largest), axis=-1, keepdims=True))
    terms = tf.where(target != 0, target * (log_sum - (logits - largest)), tf.zeros_like(logits))
    lse = (largest + log_sum)[..., 0]
    loss = tf.reduce_sum(terms, axis=-1) + (z_loss * lse**2 if z_loss else 0)
    loss, lse, of_label = (tf.where(counts, value, tf.zeros_like(value)) for value in (loss, lse, of_label))
    total = tf.reduce_sum(of_label)
    return loss, lse, tf.reduce_sum(loss), tf.where(total == 0, tf.ones_like(total), total)


def gradients(
    inputs: tf.Tensor,
    weight: tf.Tensor,
    bias: tf.Tensor | None,
    labels: tf.Tensor,
    class_weight: tf.Tensor | None,
    d_loss: tf.Tensor,
    d_lse: tf.Tensor,
    *,
    mean: bool,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    logit_softcap: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Those by inputs, weight and bias, and the sum of d_loss times the losses; for a mean d_loss is divided first."""
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss, "logit_softcap": logit_softcap}
    found = losses(inputs, weight, bias, labels, class_weight, ignore_index=ignore_index, **options)
    loss, _, _, total_weight = found
    if mean:
        d_loss /= total_weight
    counts = tf.cast(labels, tf.int64) != ignore_index
    logits = _logits(inputs, weight, bias, counts, logit_softcap)
    target, _ = _target(labels, weight, class_weight, label_smoothing, logits.dtype)
    lse = tf.reduce_logsumexp(logits, axis=-1, keepdims=True)
    d_loss, d_lse = (tf.where(counts, value, tf.zeros_like(value))[..., tf.newaxis] for value in (d_loss, d_lse))
    every = d_loss * (tf.reduce_sum(target, axis=-1, keepdims=True) + 2 * z_loss * lse) + d_lse
    dlogits = tf.exp(logits - lse) * every - d_loss * target
    if logit_softcap > 0:
        dlogits *= 1 - (logits / logit_softcap) ** 2
    dlogits = tf.where(counts[..., tf.newaxis], dlogits, tf.zeros_like(dlogits))
    wide_inputs = tf.where(counts[..., tf.newaxis], tf.cast(inputs, dlogits.dtype), 0)
    dinputs = tf.matmul(_rows(dlogits), tf.cast(weight, dlogits.dtype))
    dweight = tf.matmul(_rows(dlogits), _rows(wide_inputs), transpose_a=True)
    total = tf.reduce_sum(d_loss[..., 0] * loss)
    dbias = tf.cast(tf.reduce_sum(_rows(dlogits), axis=0), weight.dtype)
    return tf.cast(tf.reshape(dinputs, tf.shape(inputs)), inputs.dtype), tf.cast(dweight, weight.dtype), dbias, total


def _rows(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tensor, [tf.reduce_prod(tf.shape(tensor)[:-1]), tf.shape(tensor)[-1]])


def _logits(
    inputs: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor | None, counts: tf.Tensor, softcap: float
) -> tf.Tensor:
    """In float32 or, if they are wider, in inputs' dtype; of inputs that do not count as if they were 0."""
    dtype = tf.float64 if inputs.dtype == tf.float64 else tf.float32
    x = tf.where(counts[..., tf.newaxis], tf.cast(inputs, dtype), tf.zeros([], dtype))
    logits = tf.matmul(_rows(x), tf.cast(weight, dtype), transpose_b=True)
    logits = tf.reshape(logits, tf.concat([tf.shape(inputs)[:-1], tf.shape(weight)[:1]], axis=0))
    if bias is not None:
        logits += tf.cast(bias, dtype)
    return softcap * tf.tanh(logits / softcap) if softcap > 0 else logits


def _target(
    labels: tf.Tensor, weight: tf.Tensor, class_weight: tf.Tensor | None, smoothing: float, dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """By what the loss multiplies each class' -log probability, and the class weight of each label."""
    classes = tf.shape(weight)[0]
    own = tf.one_hot(tf.cast(labels, tf.int64), classes, dtype=dtype)
    given = tf.ones([classes]) if class_weight is None else class_weight
    per_class = tf.cast(tf.stop_gradient(given), dtype)
    target = own * per_class * (1 - smoothing) + smoothing * per_class / tf.cast(tf.maximum(classes, 1), dtype)
    return target, tf.reduce_sum(own * per_class, axis=-1)


def with_gradients(
    op: Callable[..., Any],
    labels: Any,
    inputs: Any,
    weight: Any,
    bias: Any,
    class_weight: Any,
    **options: Any,
) -> tf.Tensor:
    """The mean or sum of the losses from the op that computes their gradients, which then have only to be scaled."""
    labels, inputs = tf.convert_to_tensor(labels), tf.convert_to_tensor(inputs)
    weight = tf.convert_to_tensor(weight, inputs.dtype)
    biased = bias is not None
    bias = tf.convert_to_tensor(bias, inputs.dtype) if biased else tf.zeros([0], inputs.dtype)
    d_loss, d_lse = tf.ones(tf.shape(labels)), tf.zeros(tf.shape(labels))

    @tf.custom_gradient
    def loss(inputs: tf.Tensor, weight: tf.Tensor, bias: tf.Tensor) -> Any:
        found = op(
            inputs, weight, bias, labels, class_weight, d_loss, d_lse, biased=biased, has_dbias=biased, **options,
        )  # fmt: skip

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            results = [found.dinputs, found.dweight, found.dbias if biased else tf.zeros_like(bias)]
            if tf.executing_eagerly() and upstream.numpy() == 1:  # saves a pass over memory
                return results
            return [tf.cast(tf.cast(one, tf.float32) * upstream, one.dtype) for one in results]

        return found.total, gradient

    return loss(inputs, weight, bias)
