"""Lamb."""

import tensorflow as tf

from tftoolkit.trainers.update.optimizers.adam import Moments
from tftoolkit.trainers.update.optimizers.base import norm
from tftoolkit.trainers.update.optimizers.rule import Turn
from tftoolkit.trainers.update.schedules import Schedule


class Lamb(Moments):
    """AdamW's direction, as long as the weight times the learning rate (You et al. 2020, algorithm 2): large batches.

    With :class:`AdamW`'s moments::

        u = m' / (sqrt(v') + epsilon) + weight_decay * w
        w <- w - learning_rate * |w| / |u| * u

    with Euclidean norms over each weight as a whole. The ratio is 1 where either norm is 0, and, as in the authors'
    program, for weights without decay (``Update(no_weight_decay=…)``; usually biases and the scales of norms).

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        beta_1, beta_2, epsilon, weight_decay: as above.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        master_weights: bool = False,
    ) -> None:
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            master_weights=master_weights,
        )

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        way = one.decayed(self.direction(one, *scalars))
        if self.decays[one.number]:
            length, of_way = norm(one.value), norm(way)
            both = tf.logical_and(length > 0, of_way > 0)
            way = tf.where(both, length / tf.where(both, of_way, 1.0), 1.0) * way
        return one.value - one.rate * way
