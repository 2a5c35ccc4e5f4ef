"""Lion."""

import tensorflow as tf

from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_fractions
from tftoolkit.trainers.update.schedules import Schedule


class Lion(Rule):
    """The sign of a momentum (Chen et al. 2023, algorithm 2); one slot per weight.

    ::

        w <- w - learning_rate * (sign(beta_1 * m + (1 - beta_1) * g) + weight_decay * w)
        m <- beta_2 * m + (1 - beta_2) * g

    The authors advise a learning rate 3 to 10 times smaller than AdamW's and a decay as much larger.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        beta_1, beta_2, weight_decay: as above.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float = 0.01,
        master_weights: bool = False,
    ) -> None:
        check_fractions(beta_1=beta_1, beta_2=beta_2)
        super().__init__(learning_rate, weight_decay=weight_decay, master_weights=master_weights)
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    def slot_names(self) -> tuple[str, ...]:
        return ("m", *super().slot_names())

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        old = one.read("m")
        way = tf.sign(self.beta_1 * old + (1.0 - self.beta_1) * one.gradient)
        one.write("m", old, self.beta_2 * old + (1.0 - self.beta_2) * one.gradient)
        return one.value - one.rate * one.decayed(way)
