"""RMSprop."""

import tensorflow as tf

from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_fractions, check_not_negative
from tftoolkit.trainers.update.schedules import Schedule


class RMSprop(Rule):
    """Gradients divided by a moving root mean square (Tieleman & Hinton 2012, lecture 6.5).

    ::

        v <- rho * v + (1 - rho) * g^2
        a <- rho * a + (1 - rho) * g                              (centered: Graves 2013, equations 38 to 45)
        b <- momentum * b + learning_rate * g / (sqrt(v - a^2) + epsilon)
        w <- w - b

    ``a`` and ``b`` are kept only where they are used. As in PyTorch, epsilon stands beside the root; Keras has it under
    the root, and PyTorch multiplies ``b`` by the learning rate where it is subtracted.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        rho, momentum, centered, epsilon: as above.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        rho: float = 0.9,
        momentum: float = 0.0,
        centered: bool = False,
        epsilon: float = 1e-8,
        master_weights: bool = False,
    ) -> None:
        check_fractions(rho=rho, momentum=momentum)
        check_not_negative(epsilon=epsilon)
        super().__init__(learning_rate, master_weights=master_weights)
        self.rho = rho
        self.momentum = momentum
        self.centered = centered
        self.epsilon = epsilon

    def slot_names(self) -> tuple[str, ...]:
        used = {"v": True, "a": self.centered, "momentum": self.momentum > 0}
        return (*(name for name, is_used in used.items() if is_used), *super().slot_names())

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        g = one.gradient
        squares = one.change("v", lambda v: self.rho * v + (1.0 - self.rho) * tf.square(g))
        if self.centered:
            mean = one.change("a", lambda a: self.rho * a + (1.0 - self.rho) * g)
            squares = squares - tf.square(mean)
        # A variance can come out below 0 by rounding, as a mean of squares can where workers subtract side by side.
        way = one.rate * g / (tf.sqrt(tf.maximum(squares, 0.0)) + self.epsilon)
        if self.momentum:
            way = one.change("momentum", lambda old: self.momentum * old + way)
        return one.value - way
