"""Adam that moves only the rows of a table that a step used."""

from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.update import slices
from tftoolkit.trainers.update.optimizers.adam import AdamW
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn
from tftoolkit.trainers.update.schedules import Schedule
from tftoolkit.trainers.update.slices import Gradient


class LazyAdam(AdamW):
    """:class:`AdamW`, but where a gradient is ``tf.IndexedSlices``, of its rows alone: weights, moments and decay.

    That is what ``tf.gather`` and :func:`tftoolkit.custom_ops.embedding_bag` give for their tables. A table of a
    million rows of which a step uses thousands is neither read nor written as a whole. Rows of one index are added up
    first, so a row that was used twice moves once; the global norm and clipping are those of the sums. A step in which
    all rows are used is AdamW's. Otherwise it is another rule: AdamW also moves rows that aren't used, by what is left
    of their moments and by weight decay; here they wait, and the corrections of the moments count all steps.

    A dense gradient is applied as AdamW does it. So is one that something made dense: a table that is also used as a
    matrix (tied weights), say.

    Args:
        learning_rate, beta_1, beta_2, epsilon, master_weights: as for :class:`AdamW`.
        weight_decay: as for :class:`AdamW`, but none by default.

    Checkpoints are AdamW's. It needs the gradient of a whole batch on one replica, since gradients that are added up
    are dense: an ``Update`` refuses ``accumulate``, and training several replicas.

    Raises:
        ValueError: a number out of range; from ``build``: parameter servers.
    """

    sparse = True
    takes_turns = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
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

    def global_norm(self, gradients: Sequence[Gradient]) -> tf.Tensor:
        """That of the gradients written out as dense ones; of slices, as ``slices.summed`` returns them."""
        return super().global_norm(
            [slices.each_once(one) if isinstance(one, tf.IndexedSlices) else one for one in gradients]
        )

    def turn(self, number: int, gradient: Gradient, ok: tf.Tensor, learning_rate: tf.Tensor) -> Turn:
        kind = Rows if isinstance(gradient, tf.IndexedSlices) else Turn
        return kind(self, number, gradient, ok, learning_rate)


class Rows(Turn):
    """The turn of some rows of a weight; what is here and in the slots are those rows."""

    def __init__(
        self, rule: Rule, number: int, gradient: tf.IndexedSlices, ok: tf.Tensor, learning_rate: tf.Tensor
    ) -> None:
        self._indices = gradient.indices
        super().__init__(rule, number, gradient.values, ok, learning_rate)

    def _value_of(self, variable: tf.Variable) -> tf.Tensor:
        return tf.gather(own(variable), self._indices)

    def _assign(self, variable: tf.Variable, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        # tf.where would spread the one bit over all rows, which takes three times as long.
        value = tf.raw_ops.Select(condition=self._ok, x=value, y=before)
        own(variable).scatter_update(tf.IndexedSlices(value, self._indices))
        return value
