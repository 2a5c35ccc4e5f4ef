"""Adam that moves only the rows of a table that a step used."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import variables
from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.update import slices
from tftoolkit.trainers.update.optimizers.adam import AdamW
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, scaled
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
        fused: as for :class:`AdamW`; rows of float32 tables on the CPU are added up and moved by compiled ops of their
            own (:func:`tftoolkit.custom_ops.sum_rows`, :func:`tftoolkit.custom_ops.adamw_rows`), rows of other tables
            as without it.

    Checkpoints are AdamW's. It needs the gradient of a whole batch on one replica, since gradients that are added up
    are dense: an ``Update`` refuses ``accumulate``, and training several replicas.

    Raises:
        BuildError: fused, and the ops can't be compiled.
        ValueError, TypeError: a number out of range; from ``build``: parameter servers; what ``fused`` refuses.
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
        fused: bool = False,
    ) -> None:
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            master_weights=master_weights,
            fused=fused,
        )
        if fused:  # compiled here, as the ops of AdamW are
            _ = custom_ops.adamw_rows

    def summed(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        if not self.fused:
            return super().summed(gradient)
        rows = custom_ops.sum_rows(tf.cast(gradient.values, tf.float32), gradient.indices)
        return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)

    def global_norm(self, gradients: Sequence[Gradient]) -> tf.Tensor:
        """That of the gradients written out as dense ones; of slices, as ``summed`` returns them."""

        def rows(one: tf.IndexedSlices) -> tf.Tensor:
            return one.values if self.fused else slices.each_once(one)

        return super().global_norm([rows(one) if isinstance(one, tf.IndexedSlices) else one for one in gradients])

    def step(self, gradients: Sequence[Gradient], ok: tf.Tensor) -> None:
        if not self.fused:
            super().step(gradients, ok)
            return
        of_rows = [i for i, one in enumerate(gradients) if isinstance(one, tf.IndexedSlices)]
        whole = [i for i in range(len(gradients)) if i not in of_rows]
        if whole:
            self._move_at_once(whole, [gradients[i] for i in whole], ok)
        rate, t = tf.cast(self.learning_rate, tf.float32), tf.cast(self.iterations + 1, tf.float32)
        for i in of_rows:
            if self.weights[i].dtype == tf.float32 and "GPU" not in self.weights[i].device:
                self._move_rows(i, gradients[i], ok, scaled(rate, self.rate_factors[i]), t)
            else:
                self._take_turn(i, slices.summed(gradients[i]), ok, rate, self.scalars(t))
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))

    def _move_rows(self, number: int, gradient: tf.IndexedSlices, ok: tf.Tensor, rate: tf.Tensor, t: tf.Tensor) -> None:
        kept = [own(each[number]) for each in (self.weights, self.slots["m"], self.slots["v"])]
        # Eagerly the table would be copied.
        move = _move_in_graph if tf.executing_eagerly() else _move
        move(
            *(kept, ok, rate, t, gradient.indices, gradient.values),
            beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon, weight_decay=self._decay_of(number),
        )  # fmt: skip

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


def _move(
    kept: Sequence[tf.Variable],
    ok: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    indices: tf.Tensor,
    gradients: tf.Tensor,
    **options: Any,
) -> None:
    """Update rows of a table and of its moments by the op."""
    # tf.gather makes reads of the table copies, and then an assignment, too.
    tf.raw_ops.DisableCopyOnRead(resource=kept[0].handle)
    w, m, v = (variables.memory(variable, ok) for variable in kept)
    new = custom_ops.adamw_rows(ok, rate, t, w, m, v, indices, gradients, **options)
    for variable, value in zip(kept, new, strict=True):
        variable.assign(value)


_move_in_graph = tf.function(_move, autograph=False, reduce_retracing=True)
