"""Stochastic weight averaging."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.update.ema import Average
from tftoolkit.trainers.update.optimizers.base import Optimizer
from tftoolkit.trainers.update.optimizers.wrapper import Wrapper


class SWA(Wrapper):
    """Another optimizer, and the plain mean of the weights that it went through (Izmailov et al. 2018, algorithm 1).

    The weights after updates ``start``, ``start + period``, ``start + 2 * period``, … are averaged, in float32 at
    least; training goes on from the weights as they are. Use a learning rate that is constant or cyclic from ``start``
    on, and a period of an epoch or a cycle. Evaluate and export with ``with update.optimizer.swa_weights(): …``. Moving
    statistics of batch normalization stay those of the raw weights; run some batches in training mode within to renew
    them.

    Args:
        optimizer: another optimizer of ``trainers.optimizers``, not used elsewhere; it has the learning rate.
        start: the number of the first update after which the weights are taken in, from 1.
        period: how many updates lie between two of them.

    Attributes:
        average: the mean; ``average.updates`` (int64 variable) counts the weights in it.

    Raises:
        TypeError: not an optimizer of this package.
        ValueError: a number below 1; an optimizer that is in use; from ``build``: parameter servers.
    """

    def __init__(self, optimizer: Optimizer, *, start: int, period: int) -> None:
        for name, value in (("start", start), ("period", period)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        super().__init__(optimizer)
        self.start = start
        self.period = period
        self.average: Average | None = None

    def build(
        self,
        weights: Sequence[Any],
        rate_factors: Sequence[float] = (),
        decays: Sequence[bool] = (),
        names: Sequence[str] = (),
    ) -> None:
        super().build(weights, rate_factors, decays, names)
        self.average = Average(self.weights)

    def slot_names(self) -> tuple[str, ...]:
        return ()

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        assert self.average is not None
        self.average.check_raw()
        self.inner.step(gradients, ok)
        past = self.iterations - self.start
        due = tf.reduce_all([ok, past >= 0, tf.equal(past % self.period, 0)])
        own(self.average.updates).assign_add(tf.cast(due, tf.int64))
        count = tf.cast(tf.maximum(self.average.updates, 1), tf.float64)
        self.average.blend(due, 1.0 / count)

    @contextlib.contextmanager
    def swa_weights(self) -> Iterator[None]:
        """Have the mean in the model's weights for a while; whatever happens, the weights come back bit for bit.

        Before ``start`` the weights stay as they are.

        Raises:
            RuntimeError: used before the ``Update`` was made, inside a ``tf.function``, or while already in place.
        """
        if self.average is None:
            raise RuntimeError("there are no averaged weights yet: give the optimizer to an Update first")
        with self.average.in_place():
            yield
