"""Linear-chain CRFs in plain TensorFlow: what the kernels are compared with, and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import loops, refusing


def _prepared(logits: Any, lengths: Any, *scores: Any, dtype: tf.DType = tf.float32) -> tuple[tf.Tensor, ...]:
    """In that dtype, with more steps and one more state, which no path takes, so that there is a first one of each."""
    x, (lengths, _) = tf.cast(logits, dtype), refusing.fitting(lengths, tf.shape(logits)[1])
    transitions, start, end = (one if one is None else tf.cast(one, dtype) for one in scores)
    inside = tf.sequence_mask(lengths, tf.shape(x)[1])[..., None]
    x = tf.pad(tf.where(inside, x, tf.zeros_like(x)), [[0, 0], [0, 2], [0, 0]])
    x = tf.pad(x, [[0, 0], [0, 0], [0, 1]], constant_values=-math.inf)
    ends = (tf.zeros(tf.shape(x)[2:], dtype) if one is None else tf.pad(one, [[0, 1]]) for one in (start, end))
    return x, tf.cast(lengths, tf.int32), tf.pad(transitions, [[0, 1], [0, 1]]), *ends


def _spoilt(found: tf.Tensor, logits: Any, lengths: Any, tags: Any = None) -> tf.Tensor:
    """NaN for sequences, the first dimension, with a length or a tag that does not fit."""
    fitting, bad = refusing.fitting(lengths, tf.shape(logits)[1])
    if tags is not None:
        within = tf.sequence_mask(fitting, tf.shape(tags)[1])
        bad |= tf.reduce_any(within & refusing.fitting(tags, tf.shape(logits)[2] - 1)[1], 1)
    return refusing.spoilt(found, bad)


def _log_sum(x: tf.Tensor, axis: int) -> tf.Tensor:
    """log sum e^x; where there is nothing but minus infinity it is that, and doesn't change."""
    largest = tf.stop_gradient(tf.reduce_max(x, axis, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    total = tf.reduce_sum(tf.exp(x - largest), axis)
    nothing = total == 0
    found = tf.math.log(tf.where(nothing, tf.ones_like(total), total)) + tf.squeeze(largest, axis)
    return tf.where(nothing, -math.inf, found)


def _scan(x: tf.Tensor, lengths: tf.Tensor, first: tf.Tensor, step: Callable[..., Any], reverse: bool) -> tf.Tensor:
    """step(values, logits) for t = 1 …, or back from the last; [time, batch, states]. Past an end values stay."""
    rows = tf.transpose(x, [1, 0, 2])[1:]
    places = tf.range(1, tf.shape(rows)[0] + 1)

    def body(values: tf.Tensor, given: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        t, here = given
        return tf.where((t < lengths)[:, None], step(values, here), values)

    found = loops.scan(body, (places, rows), first, reverse=reverse)
    return tf.concat([found, first[None]] if reverse else [first[None], found], 0)


def _centred(x: tf.Tensor) -> tf.Tensor:
    """Less the largest of each row: shares do not depend on that, and long sequences stay exact."""
    largest = tf.stop_gradient(tf.reduce_max(x, -1, keepdims=True))
    return x - tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))


def _alphas(
    x: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, start: tf.Tensor, centre: Callable[..., Any] = tf.identity
) -> tf.Tensor:
    """The logarithm of the sum over all paths to each state of e^score."""

    def step(alpha: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
        return centre(here + _log_sum(alpha[:, :, None] + transitions, 1))

    return _scan(x, lengths, x[:, 0] + start, step, reverse=False)


def _betas(x: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """The same over all paths from each state on, without its own logit, and centred."""

    def step(beta: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
        return _centred(_log_sum((here + beta)[:, None, :] + transitions, 2))

    return _scan(x, lengths, tf.zeros_like(x[:, 0]) + end, step, reverse=True)


def _log_z(alphas: tf.Tensor, lengths: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum over all paths of e^score; 0 of an empty sequence."""
    found = _log_sum(alphas[-1] + end, 1)
    return tf.where(lengths > 0, found, tf.zeros_like(found))


def _score(logits: Any, tags: Any, lengths: Any, transitions: tf.Tensor, start: Any, end: Any) -> tf.Tensor:
    x, lengths, transitions, start, end = _prepared(logits, lengths, transitions, start, end)
    states = tf.shape(x)[2]
    tags = tf.where(
        tf.sequence_mask(lengths, tf.shape(tags)[1]), tf.cast(refusing.fitting(tags, states - 2)[0], tf.int32), 0
    )
    tags = tf.pad(tags, [[0, 0], [0, 2]])
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
    x, whole, wide, first, last = _prepared(logits, lengths, transitions, start, end)
    total = _log_z(_alphas(x, whole, wide, first), whole, last)
    found = _score(logits, tags, lengths, transitions, start, end) - total
    return _spoilt(tf.where(tf.math.is_inf(total) & (total < 0), total, found), logits, lengths, tags)


def _probabilities(
    x: tf.Tensor, lengths: tf.Tensor, transitions: tf.Tensor, start: tf.Tensor, end: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Of states, [time, batch, states], and of neighbours, [time - 1, batch, states, states]; and where there are any.

    They are of what ``_prepared`` gives, and anything behind an end and where no path is possible.
    """
    alphas, betas = _alphas(x, lengths, transitions, start, _centred), _betas(x, lengths, transitions, end)
    is_possible = _log_z(alphas, lengths, end) != -math.inf
    some = (tf.range(tf.shape(alphas)[0])[:, None] < lengths) & is_possible
    arrivals = (tf.transpose(x, [1, 0, 2]) + betas)[1:, :, None, :]
    pairs = alphas[:-1, :, :, None] + transitions + arrivals
    of_pairs = _shares(tf.reshape(pairs, tf.concat([tf.shape(pairs)[:2], [-1]], 0)))
    return _shares(alphas + betas), tf.reshape(of_pairs, tf.shape(pairs)), some


def _shares(x: tf.Tensor) -> tf.Tensor:
    """The softmax of rows; zeros where there is nothing."""
    total = _log_sum(x, -1)[..., None]
    return tf.exp(x - tf.where(total == -math.inf, tf.zeros_like(total), total))


def gradients(
    logits: Any, tags: Any, lengths: Any, transitions: Any, start: Any, end: Any, dy: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """By logits, transitions, start and end: what the tags are, less what is probable."""
    x, whole, *scores = _prepared(logits, lengths, transitions, start, end)
    states, pairs, some = _probabilities(x, whole, *scores)
    own = tf.one_hot(tf.transpose(tf.pad(tf.cast(tags, tf.int32), [[0, 0], [0, 2]])), tf.shape(x)[2])
    own_pairs = own[:-1, :, :, None] * own[1:, :, None, :]
    by_state = tf.where(some[..., None], dy[:, None] * (own - states), tf.zeros_like(states))[..., :-1]
    by_pair = tf.where(some[1:, :, None, None], dy[:, None, None] * (own_pairs - pairs), tf.zeros_like(pairs))
    is_last = tf.range(tf.shape(x)[1])[:, None] == whole - 1
    spoilt = tf.reduce_sum(_spoilt(tf.zeros_like(dy), logits, lengths, tags))  # NaN or 0
    return (
        tf.cast(_spoilt(tf.transpose(by_state[:-2], [1, 0, 2]), logits, lengths, tags), logits.dtype),
        tf.reduce_sum(by_pair, [0, 1])[:-1, :-1] + spoilt,
        tf.reduce_sum(by_state[0], 0) + spoilt,
        tf.reduce_sum(tf.where(is_last[..., None], by_state, tf.zeros_like(by_state)), [0, 1]) + spoilt,
    )


def marginals(logits: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tf.Tensor:
    """Forward-backward (Rabiner 1989)."""
    states, _, some = _probabilities(*_prepared(logits, lengths, transitions, start, end))
    found = tf.where(some[..., None], states, tf.zeros_like(states))
    return _spoilt(tf.transpose(found[:-2, :, :-1], [1, 0, 2]), logits, lengths)


def decode(logits: Any, lengths: Any, transitions: Any, start: Any, end: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """The best paths and their scores, in float64 as in the kernel: paths may differ by less than float32 can tell."""
    given = lengths
    x, lengths, transitions, start, end = _prepared(logits, lengths, transitions, start, end, dtype=tf.float64)
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
    )[2][:, :-2]
    best = tf.reduce_max(last, 1)
    best = _spoilt(tf.cast(tf.where(lengths > 0, best, tf.zeros_like(best)), tf.float32), logits, given)
    refused = refusing.fitting(given, padded - 2)[1]
    path = tf.where(tf.sequence_mask(lengths, padded - 2) & ~refused[:, None], path, -1)
    return path, best
