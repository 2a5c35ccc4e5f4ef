"""Base of the optimizers that do something beside another one."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import is_asynchronous
from tftoolkit.trainers.update.optimizers.base import Optimizer
from tftoolkit.trainers.update.schedules import Schedule


class Wrapper(Optimizer):
    """Has the learning rate, the decay and the step counter of the optimizer that it wraps.

    Attributes:
        inner: that optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        kind = type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{kind} wraps an optimizer of trainers.optimizers, not {optimizer!r}")
        if optimizer.weights:
            raise ValueError(f"the optimizer given to {kind} already belongs to other weights: make a new one")
        self.inner = optimizer
        super().__init__(optimizer.schedule)
        self.iterations = optimizer.iterations
        self.weight_decay = optimizer.weight_decay
        self.sparse = optimizer.sparse

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self.inner.schedule = schedule

    def build(
        self,
        weights: Sequence[Any],
        rate_factors: Sequence[float] = (),
        decays: Sequence[bool] = (),
        names: Sequence[str] = (),
    ) -> None:
        if is_asynchronous():
            raise ValueError(f"{type(self).__name__} doesn't work with parameter servers")
        self.inner.build(weights, rate_factors, decays, names)
        super().build(weights, rate_factors, decays, names)

    def summed(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        return self.inner.summed(gradient)

    def global_norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        return self.inner.global_norm(gradients)
