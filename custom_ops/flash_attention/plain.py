"""Attention in plain TensorFlow, with all scores: what the kernels are compared with, and second derivatives."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


def seen(q: tf.Tensor, k: tf.Tensor, lengths: Any, *, causal: bool, window: int, **_: Any) -> tf.Tensor:
    """bool[batch or 1, queries, keys]: which keys a query sees."""
    queries, keys = tf.shape(q)[1], tf.shape(k)[1]
    key = tf.range(keys)
    allowed = _near(tf.range(queries)[:, None] + keys - queries, key, causal, window)[None]
    return allowed if lengths is None else allowed & (key < lengths[:, None, None])


class Padded:
    """Sequences one behind the other, each in a row of its own: [sequences, longest, …]."""

    def __init__(self, borders: tf.Tensor) -> None:
        self._borders = borders
        self.lengths = borders[1:] - borders[:-1]
        self._longest = tf.maximum(0, tf.reduce_max(tf.concat([[0], self.lengths], 0)))

    def pad(self, rows: tf.Tensor) -> tf.Tensor:
        """[rows, …] -> [sequences, longest, …], with zeros behind each sequence."""
        place = tf.range(self._longest)
        index = tf.where(place < self.lengths[:, None], self._borders[:-1, None] + place, tf.shape(rows)[0])
        with_zeros = tf.concat([rows, tf.zeros([1, *tf.unstack(tf.shape(rows))[1:]], rows.dtype)], 0)
        return tf.gather(with_zeros, tf.minimum(index, tf.shape(rows)[0]))

    def unpad(self, padded: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """[sequences, longest, …] -> as many rows as ``like``; zeros for rows that no sequence has."""
        row = tf.range(tf.shape(like)[0])
        sequence = tf.searchsorted(self._borders, row, side="right") - 1
        place = row - tf.gather(self._borders, tf.maximum(sequence, 0))
        count, tail = tf.shape(self.lengths)[0], tf.unstack(tf.shape(padded))[2:]
        inside = (sequence >= 0) & (sequence < count) & (place < self._longest)
        rows = tf.reshape(padded, [count * self._longest, *tail])
        with_zeros = tf.concat([rows, tf.zeros([1, *tail], rows.dtype)], 0)
        return tf.gather(with_zeros, tf.where(inside, sequence * self._longest + place, count * self._longest))


def seen_varlen(of_q: Padded, of_k: Padded, q: tf.Tensor, k: tf.Tensor, causal: bool, window: int) -> tf.Tensor:
    """bool[sequences, queries, keys], of padded q and k."""
    key = tf.range(tf.shape(k)[1])
    place = tf.range(tf.shape(q)[1]) + (of_k.lengths - of_q.lengths)[:, None]
    return _near(place[..., None], key, causal, window) & (key < of_k.lengths[:, None, None])


def _near(place: tf.Tensor, key: tf.Tensor, causal: bool, window: int) -> tf.Tensor:
    allowed = tf.ones_like(place - key, tf.bool)
    if causal:
        allowed &= key <= place
    if window:
        allowed &= (key > place - window) & (key < place + window)
    return allowed


def _scores(
    q: tf.Tensor, k: tf.Tensor, allowed: tf.Tensor, bias: Any, scale: float, softcap: float
) -> tuple[tf.Tensor, Any]:
    """[batch, heads, queries, keys], and what a softcap multiplies their gradients by."""
    scores = scale * tf.einsum("bqhd,bkhd->bhqk", q, k)
    slope: Any = 1.0
    if softcap:
        capped = tf.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - capped * capped
    if bias is not None:
        scores += tf.cast(bias, tf.float32)
    return tf.where(allowed[:, None], scores, -math.inf), slope


def _wide(heads: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """In float32, with a head of k or v for each of q."""
    return [tf.repeat(tf.cast(one, tf.float32), heads // tf.maximum(1, tf.shape(one)[2]), 2) for one in tensors]


def attention(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    allowed: tf.Tensor,
    bias: Any,
    *,
    scale: float,
    softcap: float,
    **_: Any,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Output, largest score (in units of log 2), 1 / sum of powers, log-sum-exp."""
    wide_q, wide_k, wide_v = _wide(tf.shape(q)[2], q, k, v)
    scores, _ = _scores(wide_q, wide_k, allowed, bias, scale, softcap)
    top = tf.stop_gradient(tf.reduce_max(scores, -1, keepdims=True))
    base = tf.where(tf.math.is_inf(top) & (top < 0), 0.0, top)
    powers = tf.exp(scores - base)
    total = tf.reduce_sum(powers, -1, keepdims=True)
    empty = total == 0
    weights = powers / tf.where(empty, 1.0, total)
    o = tf.einsum("bhqk,bkhe->bqhe", weights, _where_seen(wide_v, allowed))

    def by_query(rows: tf.Tensor) -> tf.Tensor:
        return tf.transpose(rows[..., 0], [0, 2, 1])

    lse = by_query(tf.where(empty, -math.inf, base + tf.math.log(tf.where(empty, 1.0, total))))
    inverse = by_query(tf.where(empty, 0.0, 1 / tf.where(empty, 1.0, total)))
    largest = by_query(base) / math.log(2)
    return tf.cast(o, q.dtype), tf.stop_gradient(largest), inverse, lse


def _where_seen(rows: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """Of keys that no query sees, zeros: zero times NaN is NaN."""
    return tf.where(tf.reduce_any(allowed, 1)[:, :, None, None], rows, tf.zeros([], rows.dtype))


def gradients(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    allowed: tf.Tensor,
    bias: Any,
    o: tf.Tensor,
    score_max: tf.Tensor,
    inv_sum: tf.Tensor,
    d_o: tf.Tensor,
    dlse: Any,
    *,
    scale: float,
    softcap: float,
    **_: Any,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, Any]:
    """By q, k, v and the bias."""
    heads = tf.shape(q)[2]
    wide_q, wide_k, wide_v = _wide(heads, q, _where_seen(k, allowed), _where_seen(v, allowed))
    scores, slope = _scores(wide_q, wide_k, allowed, bias, scale, softcap)
    by_head = [tf.transpose(one, [0, 2, 1])[..., None] for one in (score_max * math.log(2), inv_sum)]
    p = tf.exp(scores - by_head[0]) * by_head[1]
    d_o = tf.cast(d_o, tf.float32)
    delta = tf.reduce_sum(d_o * tf.cast(o, tf.float32), -1)
    delta = delta if dlse is None else delta - dlse
    dp = tf.einsum("bqhe,bkhe->bhqk", d_o, wide_v)
    ds = tf.where(allowed[:, None], p * (dp - tf.transpose(delta, [0, 2, 1])[..., None]), 0.0)
    inner = ds * slope * scale
    dq = tf.einsum("bhqk,bkhd->bqhd", inner, wide_k)
    dk = _where_seen(_summed(tf.einsum("bhqk,bqhd->bkhd", inner, wide_q), k), allowed)
    dv = _where_seen(_summed(tf.einsum("bhqk,bqhe->bkhe", p, d_o), v), allowed)
    dbias = None
    if bias is not None:
        dbias = tf.cast(_reduced(ds, tf.shape(bias)), bias.dtype)
    return tf.cast(dq, q.dtype), tf.cast(dk, k.dtype), tf.cast(dv, v.dtype), dbias


def _summed(wide: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Over the heads of q that share one of k and v."""
    batch, keys, heads, depth = tf.unstack(tf.shape(like))
    group = tf.shape(wide)[2] // tf.maximum(1, heads)
    return tf.reduce_sum(tf.reshape(wide, [batch, keys, heads, group, depth]), 3)


def _reduced(gradient: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Over what the bias was broadcast along."""
    axes = tf.raw_ops.BroadcastGradientArgs(s0=shape, s1=tf.shape(gradient)).r0
    return tf.reshape(tf.reduce_sum(gradient, axes), shape)
