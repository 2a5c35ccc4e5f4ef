"""Stochastic gradient descent."""

import tensorflow as tf

from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_fractions
from tftoolkit.trainers.update.schedules import Schedule


class Sgd(Rule):
    """Stochastic gradient descent with (Nesterov) momentum, as in Sutskever et al. 2013.

    ``v <- momentum * v - learning_rate * g``; ``w <- w + v``, or with Nesterov's look-ahead
    ``w <- w + momentum * v - learning_rate * g``. Without momentum no slot is kept.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        momentum, nesterov: as above.

    Raises:
        ValueError: a number out of range; ``nesterov`` without momentum.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        master_weights: bool = False,
    ) -> None:
        check_fractions(momentum=momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(learning_rate, master_weights=master_weights)
        self.momentum = momentum
        self.nesterov = nesterov

    def slot_names(self) -> tuple[str, ...]:
        return (*(("momentum",) if self.momentum else ()), *super().slot_names())

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        way = -one.rate * one.gradient
        if self.momentum:
            velocity = one.change("momentum", lambda old: self.momentum * old + way)
            way = self.momentum * velocity + way if self.nesterov else velocity
        return one.value + way
