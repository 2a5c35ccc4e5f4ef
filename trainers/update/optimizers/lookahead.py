"""Lookahead."""

from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.trainers.update.gradients import wide
from tftoolkit.trainers.update.optimizers.base import Optimizer, assign_if
from tftoolkit.trainers.update.optimizers.rule import current
from tftoolkit.trainers.update.optimizers.wrapper import Wrapper


class Lookahead(Wrapper):
    """Slow weights that follow another optimizer's every few steps (Zhang et al. 2019, algorithm 1).

    After every ``sync_period`` updates of the inner optimizer::

        slow <- slow + slow_step_size * (w - slow);  w <- slow

    The inner optimizer's moments go on as they are. The slow weights are float32 at least; a weight that was assigned
    (loaded, say) is where its slow weight begins anew. The weights to evaluate are those right after such an exchange.

    Args:
        optimizer: another optimizer of ``trainers.optimizers``, not used elsewhere; it has the learning rate.
        sync_period: how many updates lie between two exchanges.
        slow_step_size: as above, above 0 and at most 1.

    Raises:
        TypeError: not an optimizer of this package.
        ValueError: a number out of range; an optimizer that is in use; from ``build``: parameter servers.
    """

    def __init__(self, optimizer: Optimizer, *, sync_period: int = 6, slow_step_size: float = 0.5) -> None:
        if sync_period < 1:
            raise ValueError(f"sync_period must be at least 1, but is {sync_period}")
        if not 0 < slow_step_size <= 1:
            raise ValueError(f"slow_step_size must be above 0 and at most 1, but is {slow_step_size}")
        super().__init__(optimizer)
        self.sync_period = sync_period
        self.slow_step_size = slow_step_size

    def slot_names(self) -> tuple[str, ...]:
        return ("slow",)

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        return tf.Variable(tf.cast(weight.read_value(), wide(weight.dtype)), trainable=False, name=slot)

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        begins = tf.equal(self.iterations % self.sync_period, 0)
        slow = [self._start(number, begins) for number in range(len(self.weights))]
        self.inner.step(gradients, ok)
        due = tf.logical_and(ok, tf.equal(self.iterations % self.sync_period, 0))
        masters = self.inner.slots.get("master", [None] * len(self.weights))
        columns = (self.weights, masters, self.slots["slow"], slow)
        for weight, master, variable, start in zip(*columns, strict=True):
            fast = weight.read_value()
            wider = tf.cast(fast, start.dtype) if master is None else master.read_value()
            after = start + self.slow_step_size * (wider - start)
            if master is not None:
                assign_if(due, master, wider, after)
            assign_if(due, weight, fast, tf.cast(after, fast.dtype))
            assign_if(ok, variable, variable.read_value(), tf.where(due, after, start))

    def _start(self, number: int, begins: tf.Tensor) -> tf.Tensor:
        """The slow weight; where a period begins, it is the weight."""
        slow = self.slots["slow"][number].read_value()
        return tf.where(begins, current(slow, self.weights[number].read_value()), slow)
