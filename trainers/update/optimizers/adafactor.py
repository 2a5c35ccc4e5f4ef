"""Adafactor."""

import tensorflow as tf

from tftoolkit.trainers.update.gradients import wide
from tftoolkit.trainers.update.optimizers.base import norm
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_not_negative
from tftoolkit.trainers.update.schedules import Schedule


class Adafactor(Rule):
    """Squares kept as the outer product of a row and a column (Shazeer & Stern 2018, algorithms 4 and 5).

    For a weight of rank 2 or more, over its last two axes (an [n, m] matrix keeps n + m numbers), with ``t`` from 1::

        beta_2 = 1 - t^beta_2_decay                             s = g^2 + epsilon_1
        r <- beta_2 * r + (1 - beta_2) * mean of s over columns
        c <- beta_2 * c + (1 - beta_2) * mean of s over rows    v = max(r c / mean(r), epsilon_1)
        u = g / sqrt(v)                                         u' = u / max(1, RMS(u) / clip_threshold)
        w <- w - rate * u' - learning_rate * weight_decay * w

    with ``rate = min(learning_rate, 1 / sqrt(t)) * max(epsilon_2, RMS(w))``. Other weights keep ``v`` itself.

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        relative_step: False: without the ``1 / sqrt(t)``, for schedules of one's own.
        scale_parameter: False: without the ``max(epsilon_2, RMS(w))``.
        beta_2_decay, epsilon_1, epsilon_2, clip_threshold, weight_decay: as above.

    Raises:
        ValueError: a number out of range; from ``build``: parameter servers.
    """

    takes_turns = True

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-2,
        *,
        relative_step: bool = True,
        scale_parameter: bool = True,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        master_weights: bool = False,
    ) -> None:
        check_not_negative(epsilon_2=epsilon_2)
        for name, value in (("epsilon_1", epsilon_1), ("clip_threshold", clip_threshold)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, but is {value}")
        if not beta_2_decay <= 0:
            raise ValueError(f"beta_2_decay must be at most 0, but is {beta_2_decay}")
        super().__init__(learning_rate, weight_decay=weight_decay, master_weights=master_weights)
        self.relative_step = relative_step
        self.scale_parameter = scale_parameter
        self.beta_2_decay = beta_2_decay
        self.epsilon_1 = epsilon_1
        self.epsilon_2 = epsilon_2
        self.clip_threshold = clip_threshold

    def slot_names(self) -> tuple[str, ...]:
        return ("rows", "columns", "v", *super().slot_names())

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        if slot == "master":
            return super()._new_slot(slot, weight)
        shape = list(weight.shape)
        shapes = {"rows": shape[:-1], "columns": shape[:-2] + shape[-1:]} if len(shape) > 1 else {"v": shape}
        if slot not in shapes:
            return None
        return tf.Variable(tf.zeros(shapes[slot], wide(weight.dtype)), trainable=False, name=slot)

    def scalars(self, t: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tf.pow(t, self.beta_2_decay), tf.math.rsqrt(t)

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        part, most = scalars  # of this step in the means: 1 - beta_2
        way = one.gradient / tf.sqrt(self._squares(one, part))
        way = way / tf.maximum(1.0, _root_mean_square(way) / self.clip_threshold)
        rate = tf.minimum(one.rate, most) if self.relative_step else one.rate
        if self.scale_parameter:
            rate = rate * tf.maximum(_root_mean_square(one.value), self.epsilon_2)
        kept = one.value - one.rate * one.decay * one.value if one.decay else one.value
        return kept - rate * way

    def _squares(self, one: Turn, part: tf.Tensor) -> tf.Tensor:
        squares = tf.square(one.gradient) + self.epsilon_1

        def mean_with(new: tf.Tensor, slot: str) -> tf.Tensor:
            return one.change(slot, lambda old: (1.0 - part) * old + part * new)

        if squares.shape.rank < 2:
            return mean_with(squares, "v")
        rows = mean_with(tf.reduce_mean(squares, -1), "rows")
        columns = mean_with(tf.reduce_mean(squares, -2), "columns")
        shares = rows / tf.reduce_mean(rows, -1, keepdims=True)
        # Where a row and a column were 0 in all gradients, the product of two epsilons is 0 in float32.
        return tf.maximum(shares[..., :, tf.newaxis] * columns[..., tf.newaxis, :], self.epsilon_1)


def _root_mean_square(tensor: tf.Tensor) -> tf.Tensor:
    return norm(tensor) / max(tensor.shape.num_elements(), 1) ** 0.5
