"""What one writes in TensorFlow without the compiled ops, under their names: for ``models.Llama(ops=plain_ops)``."""

from typing import Any

import tensorflow as tf


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def rms_norm(x: tf.Tensor, gamma: tf.Tensor, epsilon: float = 1e-6, *, residual: Any = None) -> Any:
    total = x if residual is None else x + residual
    wide = _wide(total)
    y = wide * tf.math.rsqrt(tf.reduce_mean(tf.square(wide), -1, keepdims=True) + epsilon) * _wide(gamma)
    y = tf.cast(y, x.dtype)
    return y if residual is None else (y, total)


def rotary_embedding(x: tf.Tensor, positions: None = None, *, base: float = 10000.0) -> tf.Tensor:
    half = x.shape[-1] // 2
    speeds = base ** (-tf.range(half, dtype=tf.float32) / half)
    angles = tf.range(tf.shape(x)[1], dtype=tf.float32)[:, tf.newaxis, tf.newaxis] * speeds
    one, other = tf.split(_wide(x), 2, axis=-1)
    sine, cosine = tf.sin(angles), tf.cos(angles)
    return tf.cast(tf.concat([one * cosine - other * sine, other * cosine + one * sine], -1), x.dtype)


def flash_attention(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, *, causal: bool, lengths: None = None) -> tf.Tensor:
    shared = q.shape[2] // k.shape[2]
    k, v = (tf.repeat(one, shared, axis=2) if shared > 1 else one for one in (k, v))
    scores = _wide(tf.einsum("bqhd,bkhd->bhqk", q, k)) * q.shape[-1] ** -0.5
    if causal:
        seen = tf.linalg.band_part(tf.ones(tf.shape(scores)[2:], tf.bool), -1, 0)
        scores = tf.where(seen, scores, -float("inf"))
    return tf.einsum("bhqk,bkhd->bqhd", tf.cast(tf.nn.softmax(scores), v.dtype), v)


def swiglu(gate: tf.Tensor, up: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.nn.silu(_wide(gate)) * _wide(up), gate.dtype)


def fused_linear_cross_entropy(labels: tf.Tensor, inputs: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    logits = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), weight, transpose_b=True)
    labels = tf.reshape(labels, [-1])
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(labels, 0), _wide(logits))
    counts = _wide(labels >= 0)
    return tf.reduce_sum(losses * counts) / tf.reduce_sum(counts)
