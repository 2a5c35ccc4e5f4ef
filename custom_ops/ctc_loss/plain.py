"""ctc_loss in TensorFlow's operations: logarithms of sums over states, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.engine import loops, refusing

NOTHING = -1e30  # the logarithm of 0, but finite, so that its gradient is


class Labels:
    """States of each sequence: blank, label, blank … blank.

    Attributes:
      bad: [batch]: has a length or a label that does not fit; all of the sequence is NaN.
      frames, counts: int32 [batch].
      is_frame: [batch, time].
      classes: int32 [batch, states], the blank behind the last state too.
      may_skip: [batch, states]: a way may come from the state before the last one.
    """

    def __init__(self, logits: tf.Tensor, labels: tf.Tensor, frames: tf.Tensor, counts: tf.Tensor, blank: int) -> None:
        frames, bad_frames = refusing.fitting(frames, tf.shape(logits)[1])
        counts, bad_counts = refusing.fitting(counts, tf.shape(labels)[-1])
        self.frames, self.counts = tf.cast(frames, tf.int32), tf.cast(counts, tf.int32)
        self.bad = bad_frames | bad_counts
        labels, bad_labels = refusing.fitting(labels, tf.shape(logits)[2] - 1)
        labels = tf.where(bad_labels, blank, tf.cast(labels, tf.int32))
        if labels.shape.rank == 1:
            ends = tf.cumsum(self.counts)
            is_last = tf.range(tf.size(ends)) == tf.size(ends) - 1
            self.bad |= (ends > tf.size(labels)) | is_last & (ends != tf.size(labels))
            places = (ends - self.counts)[:, tf.newaxis] + tf.range(tf.reduce_max(tf.concat([self.counts, [0]], 0)))
            labels = tf.gather(tf.concat([labels, [0]], 0), tf.minimum(places, tf.size(labels)))
        counted = tf.range(tf.shape(labels)[1]) < self.counts[:, tf.newaxis]
        self.bad |= tf.reduce_any(counted & (labels == blank), axis=1)
        labels = tf.where(counted, labels, blank)
        between = tf.fill(tf.shape(labels), blank)
        batch = tf.shape(labels)[0]
        states = tf.reshape(tf.stack([between, labels], axis=2), [batch, -1])
        first = tf.fill([batch, 1], blank)
        self.classes = tf.concat([states, first], axis=1)
        two_before = tf.concat([first, first, self.classes], axis=1)[:, :-2]
        place = tf.range(tf.shape(self.classes)[1])
        self.may_skip = (place % 2 == 1) & (place > 1) & (self.classes != two_before)
        self.is_frame = tf.range(tf.shape(logits)[1]) < self.frames[:, tf.newaxis]


def _sum(*terms: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum of exponentials."""
    largest = tf.stop_gradient(tf.reduce_max(tf.stack(terms), axis=0))
    return largest + tf.math.log(tf.add_n([tf.exp(term - largest) for term in terms]))


def _scores(given: Labels, x: tf.Tensor) -> tf.Tensor:
    """[time, batch, states]: the logits of the states' classes. NaN counts as no way: sums over classes tell of it."""
    scores = tf.gather(tf.transpose(x, [0, 2, 1]), given.classes, batch_dims=1)
    return tf.transpose(tf.where(scores > NOTHING, scores, tf.constant(NOTHING, x.dtype)), [2, 0, 1])


def _moved(alpha: tf.Tensor, by: int) -> tf.Tensor:
    """To states that lie so many behind, or before."""
    states = tf.shape(alpha)[1]
    place = tf.range(states) - by
    return tf.where((place >= 0) & (place < states), tf.roll(alpha, by, 1), tf.constant(NOTHING, alpha.dtype))


def _scan(step: Callable[..., Any], given: Labels, scores: tf.Tensor, start: tf.Tensor, reverse: bool) -> tf.Tensor:
    """step(values, scores of a frame) for all frames; behind the last they stay; [time + 1, batch, states]."""
    # One more row, so that there is one.
    frames = tf.range(tf.shape(scores)[0] + 1)

    def body(values: tf.Tensor, frame: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        t, here = frame
        return tf.where((t < given.frames)[:, tf.newaxis], step(values, here), values)

    return loops.scan(body, (frames, tf.pad(scores, [[0, 1], [0, 0], [0, 0]])), start, reverse=reverse)


def _alphas(given: Labels, scores: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum over all ways to each state of the exponentials of their scores."""
    nothing = tf.constant(NOTHING, scores.dtype)

    def step(alpha: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
        return _sum(alpha, _moved(alpha, 1), tf.where(given.may_skip, _moved(alpha, 2), nothing)) + here

    start = tf.where(tf.range(tf.shape(scores)[2]) == 0, tf.zeros([], scores.dtype), nothing)
    return _scan(step, given, scores, tf.tile(start[tf.newaxis], [tf.shape(scores)[1], 1]), reverse=False)


def _betas(given: Labels, scores: tf.Tensor) -> tf.Tensor:
    """The same over all ways on from each state, without its own score."""
    nothing = tf.constant(NOTHING, scores.dtype)

    def step(beta: tf.Tensor, here: tf.Tensor) -> tf.Tensor:
        following = beta + here
        skipped = _moved(tf.where(given.may_skip, following, nothing), -2)
        return _sum(following, _moved(following, -1), skipped)

    left = 2 * given.counts[:, tf.newaxis] - tf.range(tf.shape(scores)[2])  # states to the last one
    start = tf.where((left == 0) | (left == 1), tf.zeros([], scores.dtype), nothing)
    return _scan(step, given, scores, start, reverse=True)[1:]


def _ways(given: Labels, alpha: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum over all ways; [batch]."""
    last = tf.gather(alpha, 2 * given.counts, batch_dims=1)
    before = tf.gather(alpha, tf.maximum(2 * given.counts - 1, 0), batch_dims=1)
    return _sum(last, tf.where(given.counts > 0, before, tf.constant(NOTHING, alpha.dtype)))


def _expected(given: Labels, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """How likely a way takes each class at each frame, [batch, time, classes]; and ``_ways``."""
    scores = _scores(given, x)
    alphas, betas = _alphas(given, scores), _betas(given, scores)
    ways = _ways(given, alphas[-1])
    some = given.is_frame & (ways > NOTHING / 2)[:, tf.newaxis]
    likely = tf.exp(tf.minimum(alphas[:-1] + betas - ways[:, tf.newaxis], 1))
    likely = tf.where(some[..., tf.newaxis], tf.transpose(likely, [1, 0, 2]), tf.zeros([], x.dtype))
    batch, time, classes = tf.unstack(tf.shape(x))
    places = tf.range(batch)[:, tf.newaxis] * classes + given.classes
    by_state = tf.reshape(tf.transpose(likely, [0, 2, 1]), [tf.size(places), time])
    found = tf.math.unsorted_segment_sum(by_state, tf.reshape(places, [-1]), batch * classes)
    return tf.transpose(tf.reshape(found, [batch, classes, time]), [0, 2, 1]), ways


def _wide(given: Labels, logits: tf.Tensor) -> tf.Tensor:
    """In float32, and zeros behind the last frames."""
    wide = tf.cast(logits, tf.float32)
    return tf.where(given.is_frame[..., tf.newaxis], wide, tf.zeros_like(wide))


def losses(given: Labels, logits: tf.Tensor, zero_infinity: bool) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Losses, each frame's largest logit, and its sum of e^(logit - largest)."""
    x = _wide(given, logits)
    largest = tf.stop_gradient(tf.reduce_max(x, axis=-1, keepdims=True))
    largest = tf.where(tf.math.is_finite(largest), largest, tf.zeros_like(largest))
    total = tf.reduce_sum(tf.exp(x - largest), axis=-1)
    total = tf.where(given.is_frame, total, tf.ones_like(total))
    log_sums = tf.reduce_sum(tf.math.log(total), axis=-1)
    log_sums = tf.where(tf.math.is_finite(log_sums), log_sums, log_sums - log_sums)  # NaN
    ways = _ways(given, _alphas(given, _scores(given, x - largest))[-1])
    impossible = ways < NOTHING / 2
    loss = log_sums - tf.where(impossible, tf.zeros_like(ways), ways)
    nothing = tf.zeros_like(loss) if zero_infinity else tf.fill(tf.shape(loss), tf.constant(float("inf"), loss.dtype))
    loss = tf.where(impossible & (log_sums == log_sums), nothing, loss)
    return refusing.spoilt(loss, given.bad), largest[..., 0], total


def gradient(
    given: Labels, logits: tf.Tensor, d_loss: tf.Tensor, d_sum: tf.Tensor, largest: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    """By the logits."""
    x = _wide(given, logits)
    expected, ways = _expected(given, x)
    log_sums = tf.reduce_sum(tf.where(given.is_frame, tf.math.log(total), tf.zeros_like(total)), axis=-1)
    possible = tf.cast(ways > NOTHING / 2, d_loss.dtype)
    d_loss = tf.where(tf.math.is_finite(log_sums), tf.where(possible > 0, d_loss, 0), log_sums - log_sums)
    d_loss, d_sum, largest, total = (
        tensor[..., tf.newaxis] for tensor in (d_loss[:, tf.newaxis], d_sum, largest, total)
    )
    dx = tf.exp(x - largest) * (d_loss / total + d_sum) - d_loss * expected
    dx = tf.where(given.is_frame[..., tf.newaxis], dx, tf.zeros_like(dx))
    return tf.cast(refusing.spoilt(dx, given.bad), logits.dtype)
