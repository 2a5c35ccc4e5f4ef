"""The user's part of a training loop."""

import hashlib
from collections.abc import Mapping

import tensorflow as tf

from tftoolkit.trainers import naming


class Step(tf.Module):
    """Base class of training steps: subclass it, keep model and update as attributes, write ``__call__``.

    ``__call__(batch, key)`` is plain TensorFlow. It may run eagerly, as a graph, or inside XLA, so it must not create
    variables, use ``tf.debugging`` (silent under XLA) or draw from stateful random ops (not resumable).
    """

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        """Train on one batch.

        Args:
            batch: a dict of tensors, as the pipeline yields it.
            key: int32[2], a seed for ``tf.random.stateless_*`` and ``tf.nn.experimental.stateless_dropout``. It depends
                on the trainer's seed and the step's number only; ``tf.random.split(key, n)`` makes several of it.
                TensorFlow draws other numbers from it inside XLA than outside, whichever algorithm it is told.

        Returns:
            A dict of scalar tensors: the step's metrics.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, batch, key)")

    def named_variables(self) -> dict[str, tf.Variable]:
        """Every variable that the step holds, by a stable name: the path of attributes that leads to it.

        That holds for Keras models of both generations too, the state of their random generators included. Optimizer
        slots are named after their weight, not by position, so that a changed order can't swap them.

        Raises:
            ValueError: an optimizer trains a variable that the step doesn't hold.
        """
        return naming.named_variables(self)

    @property
    def variables(self) -> tuple[tf.Variable, ...]:
        """All of them; unlike ``tf.Module``'s own property it sees into Keras 3 models.

        Raises ValueError as :meth:`named_variables` does.
        """
        return tuple(self.named_variables().values())


def step_key(seed: int, number: tf.Tensor) -> tf.Tensor:
    """The stateless seed (int32[2]) of step ``number`` (integer scalar, counted from 0) under the trainer's ``seed``.

    The seed is hashed, so that a pipeline with the same small seed draws other numbers.
    """
    digest = hashlib.sha256(f"tftoolkit.trainers.step_key/{seed}".encode()).digest()
    return tf.stack(
        [tf.constant(int.from_bytes(digest[:4], "little", signed=True), tf.int32), tf.cast(number, tf.int32)]
    )
