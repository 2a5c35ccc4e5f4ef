"""Learning-rate schedules: functions from the number of finished optimizer steps to a learning rate.

A schedule takes an int64 scalar tensor (0 before the first update) and returns a float32 scalar tensor. It is made of
plain TensorFlow operations, so it runs eagerly, in a graph and inside XLA alike.
"""

import math
from collections.abc import Callable

import tensorflow as tf

Schedule = Callable[[tf.Tensor], tf.Tensor]


def constant(learning_rate: float) -> Schedule:
    """The same ``learning_rate`` at every step."""
    _check_rate("learning_rate", learning_rate)
    return lambda step: tf.constant(learning_rate, tf.float32)


def linear(peak: float, steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Rise linearly to ``peak`` over ``warmup_steps``, fall linearly to ``end`` at step ``steps``, then stay there."""
    return _warmed_up(peak, steps, warmup_steps, end, lambda fraction: 1.0 - fraction)


def cosine(peak: float, steps: int, *, warmup_steps: int = 0, end: float = 0.0) -> Schedule:
    """Rise linearly to ``peak`` over ``warmup_steps``, follow half a cosine to ``end`` at step ``steps``, then stay.

    The decay is that of SGDR without restarts (Loshchilov & Hutter 2017, equation 5).
    """
    return _warmed_up(peak, steps, warmup_steps, end, lambda fraction: 0.5 * (1.0 + tf.cos(math.pi * fraction)))


def _warmed_up(
    peak: float, steps: int, warmup_steps: int, end: float, shape: Callable[[tf.Tensor], tf.Tensor]
) -> Schedule:
    """``shape`` maps the finished fraction of the decay (0 to 1) to the share of ``peak - end`` that is left."""
    _check_rate("peak", peak)
    _check_rate("end", end)
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps must be at least 0 and less than steps={steps}, but is {warmup_steps}")

    def schedule(step: tf.Tensor) -> tf.Tensor:
        now = tf.cast(step, tf.float32)
        fraction = tf.clip_by_value((now - warmup_steps) / (steps - warmup_steps), 0.0, 1.0)
        decayed = end + (peak - end) * shape(fraction)
        # Step 0 already moves: the ramp ends at step warmup_steps - 1, and the decay begins one step later.
        rising = peak * (now + 1.0) / max(warmup_steps, 1)
        return tf.where(now < warmup_steps, rising, decayed)

    return schedule


def _check_rate(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number that is not negative, but is {value}")
