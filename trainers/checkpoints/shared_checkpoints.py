"""The checkpoints of several workers: the chief writes them, all read the same one."""

from collections.abc import Collection, Mapping
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.checkpoints.checkpoint_files import snapshot
from tftoolkit.trainers.checkpoints.checkpointer import Checkpointer, Restored
from tftoolkit.trainers.distribution.replicas import Workers


class SharedCheckpoints:
    """Saves and restores the variables of a step, by themselves or those of a ``tf.distribute`` strategy.

    As a context manager it locks the folder, on the chief. With one worker all this is the ``checkpointer``'s own.

    Args:
        checkpointer: that of the folder; every worker has one.
        variables: variables by stable name.
        workers: who share the folder. They must all call :meth:`save` and :meth:`restore`, in the same order.
    """

    def __init__(self, checkpointer: Checkpointer, variables: Mapping[str, tf.Variable], workers: Workers) -> None:
        self._checkpointer = checkpointer
        self._variables = variables
        self._workers = workers

    def __enter__(self) -> "SharedCheckpoints":
        if self._workers.is_chief:
            self._checkpointer.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if self._workers.is_chief:
            self._checkpointer.__exit__(kind, *exc_info)

    def save(self, step: int, state: Mapping[str, Any], *, score: float | None, protect: Collection[int]) -> None:
        """See :meth:`Checkpointer.save`."""
        # Some variables are means over all workers (statistics of tf_keras), which they all must read. And parameter
        # servers would write theirs themselves, wherever they are.
        copied = self._workers.count > 1 or self._workers.asynchronous
        variables = snapshot(self._variables) if copied else self._variables
        if self._workers.is_chief:
            self._checkpointer.save(step, variables, state, score=score, protect=protect)

    def restore(self, step: int | None = None) -> Restored | None:
        """See :meth:`Checkpointer.restore`.

        All workers take the one that the chief takes: others might look while it puts a damaged one aside.
        """
        restored = self.read(step) if self._workers.is_chief else None
        step = self._workers.from_chief(restored.step if restored else None)
        if self._workers.is_chief or step is None:
            return restored
        return self.read(step)

    def read(self, step: int | None = None) -> Restored | None:
        """Like :meth:`restore`, for this worker alone."""
        if not self._workers.asynchronous:
            return self._checkpointer.restore(self._variables, step)
        # TensorFlow would let each parameter server open the files, which perhaps only the chief can see.
        copies = snapshot(self._variables)
        restored = self._checkpointer.restore(copies, step)
        if restored is not None:
            for name, variable in self._variables.items():
                variable.assign(copies[name])
        return restored

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        if self._workers.is_chief:
            self._checkpointer.discard_after(step)

    def best_step(self) -> int | None:
        """See :meth:`Checkpointer.best_step`."""
        return self._checkpointer.best_step()

    def wait(self) -> None:
        """See :meth:`Checkpointer.wait`."""
        self._checkpointer.wait()

    def completed(self) -> list[int]:
        """See :meth:`Checkpointer.completed`."""
        return self._checkpointer.completed()
