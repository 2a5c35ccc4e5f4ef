"""Rules that skip a step, as data flow."""

import math

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import own

WINDOW = 63


class SpikeGuard(tf.Module):
    """Tells a loss above ``factor`` times the median of the 63 finite losses before it.

    The rule begins once there have been 63, and it acts only on a positive median. Spikes enter the median too, so a
    loss that stays high is accepted after half a window.

    Attributes:
        spikes: int64 variable, how many losses were spikes so far.
        losses: float32[63] variable, a ring buffer.
        seen: int64 variable, the number of finite losses so far.
    """

    def __init__(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor > 1):
            raise ValueError(f"skip_spikes must be a finite number above 1, but is {factor}")
        super().__init__()
        self.factor = factor
        self.spikes = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.losses = tf.Variable(tf.zeros([WINDOW]), trainable=False)
        self.seen = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, loss: tf.Tensor) -> tf.Tensor:
        """Take a loss (float32 scalar) in and tell whether it is a spike (bool scalar)."""
        median = tf.sort(self.losses)[WINDOW // 2]
        full = self.seen >= WINDOW
        spike = tf.reduce_all([full, median > 0, tf.math.is_finite(loss), loss > self.factor * median])
        here = tf.logical_and(tf.range(WINDOW, dtype=tf.int64) == self.seen % WINDOW, tf.math.is_finite(loss))
        own(self.losses).assign(tf.where(here, loss, self.losses))
        own(self.seen).assign_add(tf.cast(tf.math.is_finite(loss), tf.int64))
        own(self.spikes).assign_add(tf.cast(spike, tf.int64))
        return spike
