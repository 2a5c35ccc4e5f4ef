"""Averages of weights, in place of them for an evaluation."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import move, own
from tftoolkit.trainers.naming import PerWeight
from tftoolkit.trainers.update.gradients import wide


class Average(PerWeight):
    """A mean of what weights were at some times.

    Only trainable variables are averaged: batch normalisation's moving statistics stay those of the raw weights. The
    average of a weight in bfloat16 or float16 is kept in float32.

    Attributes:
        updates: int64 variable, how often something was taken in; before that, the weights stand for their average.
    """

    def __init__(self, weights: Sequence[tf.Variable]) -> None:
        super().__init__()
        self.weights = tuple(weights)
        # In float32 at least: a small part of the distance would be lost in rounding to bfloat16.
        self.slots = {
            "average": [
                tf.Variable(tf.cast(weight.read_value(), wide(weight.dtype)), trainable=False) for weight in weights
            ]
        }
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._swapped = False

    def check_raw(self) -> None:
        """Refuse to train while the averaged weights are in place."""
        if self._swapped:
            raise RuntimeError(
                "the averaged weights are in place for an evaluation: train outside of `ema_weights()`, `swa_weights()`"
            )

    def blend(self, ok: tf.Tensor, rate: tf.Tensor) -> None:
        """Move by ``rate`` (float64 scalar) of the distance to the present weights if ``ok`` (bool scalar)."""
        for weight, average in zip(self.weights, self.slots["average"], strict=True):
            before = average.read_value()
            moved = before + tf.cast(rate, before.dtype) * (tf.cast(weight, before.dtype) - before)
            move(average, before, tf.where(ok, moved, before))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the model's weights for a while; whatever happens, the weights come back bit for bit.

        Raises:
            RuntimeError: used inside a ``tf.function``, or while already in place.
        """
        if tf.inside_function():
            raise RuntimeError(
                "ema_weights() and swa_weights() exchange weights from Python: use them outside of tf.function"
            )
        if self._swapped:
            raise RuntimeError("the averaged weights are already in place")
        raw = [tf.identity(weight.read_value()) for weight in self.weights]
        self._swapped = True
        try:
            if self.updates.numpy() > 0:
                for weight, average in zip(self.weights, self.slots["average"], strict=True):
                    weight.assign(tf.cast(average, weight.dtype))
            yield
        finally:
            for weight, value in zip(self.weights, raw, strict=True):
                weight.assign(value)
            self._swapped = False


class Ema(Average):
    """Bias-corrected exponential moving average of weights (Polyak & Juditsky 1992; the correction as in Adam).

    After ``t`` updates the average is ``(1-d) * sum_i d^(t-i) w_i / (1 - d^t)``: a weighted mean of the weights after
    each update, in which the initial weights have no part. It is kept in this form, so it can be used as it is.
    """

    def __init__(self, decay: float, weights: Sequence[tf.Variable]) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema must be between 0 and 1, but is {decay}")
        super().__init__(weights)
        self.decay = decay

    def update(self, ok: tf.Tensor) -> None:
        """Take the present weights in if ``ok`` (bool scalar)."""
        self.check_raw()
        own(self.updates).assign_add(tf.cast(ok, tf.int64))
        # Float64, because 1 - d^t loses digits that the average would lose with it.
        t = tf.cast(tf.maximum(self.updates, 1), tf.float64)
        rate = (1.0 - self.decay) / (1.0 - tf.pow(tf.constant(self.decay, tf.float64), t))
        self.blend(ok, rate)
