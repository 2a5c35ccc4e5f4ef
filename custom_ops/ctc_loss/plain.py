"""ctc_loss in TensorFlow's operations: logarithms of sums over states, frame by frame."""

from __future__ import annotations

import tensorflow as tf

NOTHING = -1e30  # the logarithm of 0, but finite, so that its gradient is


class Labels:
    """States of each sequence: blank, label, blank … blank.

    Attributes:
      frames, counts: int32 [batch].
      is_frame: [batch, time].
      classes: int32 [batch, states], the blank behind the last state too.
      may_skip: [batch, states]: a way may come from the state before the last one.
    """

    def __init__(self, logits: tf.Tensor, labels: tf.Tensor, frames: tf.Tensor, counts: tf.Tensor, blank: int) -> None:
        self.frames, self.counts = tf.cast(frames, tf.int32), tf.cast(counts, tf.int32)
        labels = tf.cast(labels, tf.int32)
        if labels.shape.rank == 1:
            ends = tf.cumsum(self.counts)
            places = (ends - self.counts)[:, tf.newaxis] + tf.range(tf.reduce_max(tf.concat([self.counts, [0]], 0)))
            labels = tf.gather(tf.concat([labels, [0]], 0), tf.minimum(places, tf.size(labels)))
        counted = tf.range(tf.shape(labels)[1]) < self.counts[:, tf.newaxis]
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


def _ways(given: Labels, x: tf.Tensor) -> tf.Tensor:
    """The logarithm of the sum over all ways of the exponentials of their logits; [batch]."""
    scores = tf.gather(x, given.classes, axis=2, batch_dims=1)
    scores = tf.where(scores < NOTHING, tf.constant(NOTHING, x.dtype), scores)
    states = tf.shape(given.classes)[1]
    batch = tf.shape(x)[0]

    def behind(alpha: tf.Tensor, by: int) -> tf.Tensor:
        return tf.concat([tf.fill([batch, by], tf.constant(NOTHING, x.dtype)), alpha], axis=1)[:, :states]

    def step(t: tf.Tensor, alpha: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        skipped = tf.where(given.may_skip, behind(alpha, 2), tf.constant(NOTHING, x.dtype))
        following = _sum(alpha, behind(alpha, 1), skipped) + scores[:, t]
        return t + 1, tf.where((t < given.frames)[:, tf.newaxis], following, alpha)

    start = tf.where(tf.range(states) == 0, tf.zeros([], x.dtype), tf.constant(NOTHING, x.dtype))
    time = tf.shape(x)[1]
    start = tf.tile(start[tf.newaxis], [batch, 1])
    _, alpha = tf.while_loop(
        lambda t, _: t < time, step, (0, start), maximum_iterations=time,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, None])),
    )  # fmt: skip
    last = tf.gather(alpha, 2 * given.counts, batch_dims=1)
    before = tf.gather(alpha, tf.maximum(2 * given.counts - 1, 0), batch_dims=1)
    return _sum(last, tf.where(given.counts > 0, before, tf.constant(NOTHING, x.dtype)))


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
    ways = _ways(given, x - largest)
    impossible = ways < NOTHING / 2
    loss = log_sums - tf.where(impossible, tf.zeros_like(ways), ways)
    nothing = tf.zeros_like(loss) if zero_infinity else tf.fill(tf.shape(loss), tf.constant(float("inf"), loss.dtype))
    loss = tf.where(impossible & (log_sums == log_sums), nothing, loss)
    return loss, largest[..., 0], total


def gradient(
    given: Labels, logits: tf.Tensor, d_loss: tf.Tensor, d_sum: tf.Tensor, largest: tf.Tensor, total: tf.Tensor
) -> tf.Tensor:
    """By the logits."""
    x = _wide(given, logits)
    with tf.GradientTape() as tape:
        tape.watch(x)
        ways = _ways(given, x)
    expected = tape.gradient(ways, x, unconnected_gradients="zero")  # no frames, no way through the loop
    log_sums = tf.reduce_sum(tf.where(given.is_frame, tf.math.log(total), tf.zeros_like(total)), axis=-1)
    possible = tf.cast(ways > NOTHING / 2, d_loss.dtype)
    d_loss = tf.where(tf.math.is_finite(log_sums), tf.where(possible > 0, d_loss, 0), log_sums - log_sums)
    d_loss, d_sum, largest, total = (
        tensor[..., tf.newaxis] for tensor in (d_loss[:, tf.newaxis], d_sum, largest, total)
    )
    dx = tf.exp(x - largest) * (d_loss / total + d_sum) - d_loss * expected
    return tf.cast(tf.where(given.is_frame[..., tf.newaxis], dx, tf.zeros_like(dx)), logits.dtype)
