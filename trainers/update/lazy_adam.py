"""Adam that moves only the rows of a table that a step used."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import is_asynchronous, own
from tftoolkit.trainers.update import slices
from tftoolkit.trainers.update.optimizers import AdamW, one_minus_power, scaled
from tftoolkit.trainers.update.schedules import Schedule
from tftoolkit.trainers.update.slices import Gradient


class LazyAdam(AdamW):
    """:class:`AdamW`, but where a gradient is ``tf.IndexedSlices``, only its rows: weights, moments and decay.

    That is what ``tf.gather`` and :func:`tftoolkit.custom_ops.embedding_bag` give for their tables. A table of a
    million rows of which a step uses thousands is neither read nor written as a whole. Rows of one index are added up
    first, so an id that occurs twice moves once; the global norm and clipping are those of the sums. A step in which
    all rows are used is AdamW's. Otherwise it is another rule: AdamW also moves rows that aren't used, by what is left
    of their moments and by weight decay; here they wait, and the corrections of the moments count all steps.

    A dense gradient is applied as AdamW does it. So is everything that makes one dense: an embedding used a second time
    as a matrix (the product with tied weights), say.

    Args:
        learning_rate, beta_1, beta_2, epsilon, weight_decay: as for :class:`AdamW`, but without decay by default.

    Checkpoints are AdamW's. It needs the gradient of one whole batch on one replica: an ``Update`` refuses
    ``accumulate``, and a strategy is refused in training, since added up gradients are dense.

    Raises:
        ValueError, TypeError: as for :class:`AdamW`; from ``build``: parameter servers.
    """

    sparse = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay)

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        super()._adopt(weights, rate_factors, decays)
        if is_asynchronous():
            raise ValueError("LazyAdam overwrites rows that other workers of parameter servers wrote: take AdamW")

    def global_norm(self, gradients: Sequence[Gradient]) -> tf.Tensor:
        """That of the gradients written out as dense ones; of slices, as ``slices.summed`` returns them."""
        return super().global_norm(
            [slices.each_once(one) if isinstance(one, tf.IndexedSlices) else one for one in gradients]
        )

    def _step_by_weight(self, gradients: Sequence[Any], ok: tf.Tensor, t: tf.Tensor) -> None:
        sparse = [isinstance(gradient, tf.IndexedSlices) for gradient in gradients]
        super()._step_by_weight([None if no else one for no, one in zip(sparse, gradients, strict=True)], ok, t)
        for place, gradient in enumerate(gradients):
            if sparse[place]:
                self._step_rows(place, gradient, ok, t)

    def _step_rows(self, place: int, gradient: tf.IndexedSlices, ok: tf.Tensor, t: tf.Tensor) -> None:
        weight, m, v = (own(each[place]) for each in (self.weights, self.slots["m"], self.slots["v"]))
        scalars = (
            scaled(self.learning_rate, self.rate_factors[place]),
            *(1.0 / one_minus_power(beta, t) for beta in (self.beta_1, self.beta_2)),
        )
        rate, m_scale, v_scale, rows = (tf.cast(x, m.dtype) for x in (*scalars, gradient.values))
        old, old_m, old_v = (tf.gather(variable, gradient.indices) for variable in (weight, m, v))
        new_v = tf.where(ok, self.beta_2 * old_v + (1.0 - self.beta_2) * tf.square(rows), old_v)
        new_m = tf.where(ok, self.beta_1 * old_m + (1.0 - self.beta_1) * rows, old_m)
        direction = new_m * m_scale / (tf.sqrt(new_v * v_scale) + self.epsilon)
        before = tf.cast(old, m.dtype)
        moved = before - rate * (direction + (self.weight_decay if self.decays[place] else 0.0) * before)
        new = tf.where(ok, tf.cast(moved, old.dtype), old)
        for variable, value in ((v, new_v), (m, new_m), (weight, new)):
            variable.scatter_update(tf.IndexedSlices(value, gradient.indices))
