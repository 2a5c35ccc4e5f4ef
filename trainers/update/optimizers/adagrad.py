"""Adagrad."""

import tensorflow as tf

from tftoolkit.trainers.update.gradients import wide
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_not_negative, root
from tftoolkit.trainers.update.schedules import Schedule


class Adagrad(Rule):
    """Gradients divided by the root of the sum of all squares so far (Duchi et al. 2011, figure 1, diagonal).

    ``s <- s + g^2``; ``w <- w - learning_rate * g / (sqrt(s) + epsilon)``. As in Keras, the sum begins at 0.1 (in
    PyTorch at 0); a number whose gradients were all 0 stays where it is, whatever it begins at.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        initial_accumulator_value: what ``s`` begins at.
        epsilon: as above.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-10,
        master_weights: bool = False,
    ) -> None:
        check_not_negative(initial_accumulator_value=initial_accumulator_value, epsilon=epsilon)
        super().__init__(learning_rate, master_weights=master_weights)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def slot_names(self) -> tuple[str, ...]:
        return ("s", *super().slot_names())

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        if slot != "s":
            return super()._new_slot(slot, weight)
        start = tf.cast(self.initial_accumulator_value, wide(weight.dtype))
        return tf.Variable(tf.fill(weight.shape, start), trainable=False, name=slot)

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        total = one.change("s", lambda s: s + tf.square(one.gradient))
        return one.value - one.rate * one.gradient / (root(total) + self.epsilon)
