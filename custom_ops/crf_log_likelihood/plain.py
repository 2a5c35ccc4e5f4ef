"""Linear-chain CRFs in plain TensorFlow: what the kernels are compared with, and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def _prepared(logits: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tuple[tf.Tensor, ...]:
    """In float32, with one more step and one more state, which no path takes, so that there is a first one of each."""
    x = tf.cast(logits, tf.float32)
    inside = tf.sequence_mask(lengths, tf.shape(x)[1])[..., None]
    x = tf.pad(tf.where(inside, x, tf.zeros_like(x)), [[0, 0], [0, 1], [0, 0]])
    x = tf.concat([x, tf.fill([*tf.unstack(tf.shape(x)[:2]), 1], -math.inf)], 2)
    ends = (tf.zeros(tf.shape(x)[2:]) if one is None else tf.pad(one, [[0, 1]]) for one in (start, end))
    return x, tf.cast(lengths, tf.int32), tf.pad(transitions, [[0, 1], [0, 1]]), *ends


def _steps(x: tf.Tensor, lengths: tf.Tensor, first: Any, step: Callable[..., Any]) -> Any:
    """step(t, values, logits) for t = 1 … time - 1; values of sequences that have ended stay."""
    time = tf.shape(x)[1] - 1

    def body(t: tf.Tensor, values: Any) -> tuple[tf.Tensor, Any]:
        new = step(t, values, tf.gather(x, t, axis=1))
        going = (t < lengths)[:, None]
        return t + 1, tf.nest.map_structure(lambda one, other: tf.where(going, one, other), new, values)

    return tf.while_loop(lambda t, _: t < time, body, (tf.constant(1), first), maximum_iterations=time)[1]


def log_z(logits: Any, lengths: Any, transitions: tf.Tensor, start: Any, end: Any) -> tf.Tensor:
    """The logarithm of the sum over all paths of e^score; 0 of an empty sequence."""
    x, lengths, transitions, start, end = _prepared(logits, lengths, transitions, start, end)

    def step(t: tf.Tensor, alpha: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
        return here + tf.reduce_logsumexp(alpha[:, :, None] + transitions, 1)

    alpha = _steps(x, lengths, x[:, 0] + start, step)
    found = tf.reduce_logsumexp(alpha + end, 1)
    return tf.where(lengths > 0, found, tf.zeros_like(found))


def _score(logits: Any, tags: Any, lengths: Any, transitions: tf.Tensor, start: Any, end: Any) -> tf.Tensor:
    x, lengths, transitions, start, end = _prepared(logits, lengths, transitions, start, end)
    states = tf.shape(x)[2]
    tags = tf.pad(tf.where(tf.sequence_mask(lengths, tf.shape(tags)[1]), tf.cast(tags, tf.int32), 0), [[0, 0], [0, 1]])
    place = tf.range(tf.shape(tags)[1])
    own = tf.gather(x, tags, batch_dims=2)
    pairs = tf.gather(tf.reshape(transitions, [-1]), tags[:, :-1] * states + tags[:, 1:])
    pairs = tf.where(place[1:] < lengths[:, None], pairs, tf.zeros_like(pairs))
    last = tf.gather(tags, tf.maximum(lengths - 1, 0), batch_dims=1)
    ends = tf.gather(start, tags[:, 0]) + tf.gather(end, last)
    found = tf.reduce_sum(own, 1) + tf.reduce_sum(pairs, 1) + ends
    return tf.where(lengths > 0, found, tf.zeros_like(found))


def log_likelihood(logits: Any, tags: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tf.Tensor:
    """Of the tags."""
    total = log_z(logits, lengths, transitions, start, end)
    found = _score(logits, tags, lengths, transitions, start, end) - total
    return tf.where(tf.math.is_inf(total) & (total < 0), total, found)


def gradients(
    logits: Any, tags: Any, lengths: Any, transitions: Any, start: Any, end: Any, dy: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """By logits, transitions, start and end."""
    given = [
        *(tf.cast(logits, tf.float32), tf.convert_to_tensor(transitions)),
        *(tf.zeros(tf.shape(logits)[2:]) if one is None else tf.convert_to_tensor(one) for one in (start, end)),
    ]
    with tf.GradientTape() as tape:
        tape.watch(given)
        found = log_likelihood(given[0], tags, lengths, *given[1:])
    dlogits, *others = tape.gradient(found, given, output_gradients=dy, unconnected_gradients="zero")
    return tf.cast(dlogits, logits.dtype), *map(tf.convert_to_tensor, others)


def marginals(logits: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tf.Tensor:
    """Each state's probability is the derivative of log Z by its logit."""
    wide = tf.cast(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(wide)
        total = log_z(wide, lengths, transitions, start, end)
    return tape.gradient(total, wide, unconnected_gradients="zero")


def decode(logits: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The best paths and their scores."""
    x, lengths, transitions, start, end = _prepared(logits, lengths, transitions, start, end)
    batch, padded, states = tf.unstack(tf.shape(x))
    origin = tf.zeros([batch, states, padded], tf.int32)

    def step(t: tf.Tensor, values: Any, here: tf.Tensor) -> Any:
        score, _ = values
        arrivals = score[:, :, None] + transitions
        return here + tf.reduce_max(arrivals, 1), tf.argmax(arrivals, 1, tf.int32)

    def body(t: tf.Tensor, score: tf.Tensor, origin: tf.Tensor) -> Any:
        new, came = step(t, (score, origin), tf.gather(x, t, axis=1))
        at = tf.one_hot(t, padded, dtype=tf.int32)
        return t + 1, tf.where((t < lengths)[:, None], new, score), origin + came[..., None] * at

    loop = tf.while_loop(
        lambda t, *_: t < padded - 1, body, (tf.constant(1), x[:, 0] + start, origin), maximum_iterations=padded
    )
    last = loop[1] + end
    state, origin = tf.argmax(last, 1, tf.int32), loop[2]

    def back(t: tf.Tensor, state: tf.Tensor, path: tf.Tensor) -> Any:
        at = tf.one_hot(t, padded, dtype=tf.int32)
        path = path + (state * tf.cast(t < lengths, tf.int32))[:, None] * at
        came = tf.gather(tf.gather(origin, t, axis=2), state, batch_dims=1)
        return t - 1, tf.where((t < lengths) & (t > 0), came, state), path

    path = tf.while_loop(
        lambda t, *_: t >= 0, back, (padded - 2, state, tf.zeros([batch, padded], tf.int32)), maximum_iterations=padded
    )[2][:, :-1]
    path = tf.where(tf.sequence_mask(lengths, padded - 1), path, -1)
    best = tf.reduce_max(last, 1)
    return path, tf.where(lengths > 0, best, tf.zeros_like(best))
