"""A step whose update is skipped changes nothing, not even what it assigns by itself."""

from collections.abc import Mapping

import tensorflow as tf
from tensorflow.python.framework import auto_control_deps_utils  # what tf.function orders reads and writes by

from tftoolkit.trainers.autograph import as_written
from tftoolkit.trainers.distribution.replicas import is_asynchronous, own
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update.update import Update


class StateGuard:
    """Calls a step, and takes back what it assigned to its variables if one of its updates was skipped.

    An :class:`Update` leaves its own variables alone when it skips; this is for all others that the step holds: moving
    statistics of normalization, carried states, counters, metrics, the state of random generators. It is data flow, the
    same eagerly, in a graph and inside XLA, and costs one copy of each variable that the step assigns.

    Args:
        step: the step; all its variables exist already.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._updates = [module for module in step.submodules if isinstance(module, Update)]
        theirs = {v.ref() for update in self._updates for v in (*update.weights, *update.variables)}
        self._others = [variable for variable in step.variables if variable.ref() not in theirs]

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the step returns."""
        if not (self._updates and self._others):
            return as_written(self._step.__call__)(batch, key)
        others = [own(variable) for variable in self._others]
        before = [variable.read_value() for variable in others]  # of those that aren't assigned TensorFlow drops it
        count = self._skipped()
        metrics = as_written(self._step.__call__)(batch, key)
        skipped = self._skipped() > count
        for variable, value in zip(others, before, strict=True):
            if tf.executing_eagerly():
                if skipped:
                    variable.assign(value)
            elif _is_assigned(variable):
                _take_back(variable, value, skipped)
        return metrics

    def _skipped(self) -> tf.Tensor:
        return tf.add_n([own(update.skipped).read_value() for update in self._updates])


def _take_back(variable: tf.Variable, before: tf.Tensor, skipped: tf.Tensor) -> None:
    if is_asynchronous() or not variable.shape.is_fully_defined():
        # On parameter servers others write as well: nothing may be written where nothing is to be taken back.
        tf.cond(skipped, lambda: variable.assign(before, read_value=False), tf.no_op)
    else:
        variable.assign(tf.where(skipped, before, variable.read_value()), read_value=False)


def _is_assigned(variable: tf.Variable) -> bool:
    """Whether an operation of the graph that is being traced may write to ``variable``."""
    handle = tf.compat.v1.get_default_graph().capture(variable.handle)
    return any(auto_control_deps_utils._op_writes_to_resource(handle, op) for op in handle.consumers())
