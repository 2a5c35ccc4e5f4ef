"""From gradients to new weights: clip, guard, optimize."""

import math
from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.trainers.optimizers import Optimizer


class Update(tf.Module):
    """Turns gradients into new weights, the same way eagerly, in a graph and inside XLA.

    Args:
        model: a model with ``trainable_variables``, or the variables themselves. It must be built: variables can't be
            made inside a compiled step.
        optimizer: one of :mod:`tftoolkit.trainers.optimizers`, not used elsewhere.
        clip_norm: largest global norm of all gradients together (Pascanu et al. 2013), or None.

    A step whose gradients hold a NaN or an infinity (or whose global norm overflows float32) is skipped: all weights,
    optimizer slots and the optimizer's step counter keep their values bit for bit. This is data flow, not an assertion,
    because TensorFlow's assertions are silent under XLA.

    Attributes:
        skipped: int64 variable, how many steps were skipped so far.
        skipped_in_a_row: int64 variable, how many of the latest steps were.
    """

    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"weights", *tf.Module._TF_MODULE_IGNORED_PROPERTIES})

    def __init__(
        self,
        model: tf.Module | Sequence[tf.Variable],
        optimizer: Optimizer,
        *,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must come from tftoolkit.trainers.optimizers, but is {type(optimizer)}")
        if clip_norm is not None and not (math.isfinite(clip_norm) and clip_norm > 0):
            raise ValueError(f"clip_norm must be a finite number above 0 or None, but is {clip_norm}")
        self.weights = tuple(getattr(model, "trainable_variables", model))
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped")
        self.skipped_in_a_row = tf.Variable(0, dtype=tf.int64, trainable=False, name="skipped_in_a_row")
        optimizer.build(self.weights)

    def apply(self, gradients: Sequence[tf.Tensor], weights: Sequence[tf.Variable]) -> dict[str, tf.Tensor]:
        """Apply one optimizer step.

        Args:
            gradients: one tensor (or ``tf.IndexedSlices``) per weight, as ``tape.gradient`` returns them.
            weights: the variables that the gradients belong to: those given to the constructor, in any order.

        Returns:
            Scalars: ``grad_norm`` (float32, before clipping), ``learning_rate`` (float32) and ``skipped`` (int32, 1 if
            this step was skipped).

        Raises:
            ValueError: weights and gradients don't match, or a weight has no gradient.
        """
        dense = self._in_order(list(gradients), list(weights))
        norm = _global_norm(dense)
        finite = tf.math.is_finite(norm)
        if self.clip_norm is not None:
            scale = self.clip_norm / tf.maximum(norm, self.clip_norm)
            dense = [gradient * tf.cast(scale, gradient.dtype) for gradient in dense]

        learning_rate = self.optimizer.learning_rate
        guarded = [*self.weights, *self.optimizer.variables]
        before = [variable.read_value() for variable in guarded]
        self.optimizer.step(dense)
        for variable, old in zip(guarded, before, strict=True):
            variable.assign(tf.where(finite, variable.read_value(), old))

        flag = tf.cast(tf.logical_not(finite), tf.int64)
        self.skipped.assign_add(flag)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * flag)
        return {"grad_norm": norm, "learning_rate": learning_rate, "skipped": tf.cast(flag, tf.int32)}

    def _in_order(self, gradients: list[tf.Tensor], weights: list[tf.Variable]) -> list[tf.Tensor]:
        """The gradients, dense, in the order of ``self.weights``."""
        if len(gradients) != len(weights):
            raise ValueError(f"there are {len(gradients)} gradients for {len(weights)} weights")
        by_weight = {weight.ref(): gradient for weight, gradient in zip(weights, gradients, strict=True)}
        mine = {weight.ref() for weight in self.weights}
        if by_weight.keys() != mine:
            unknown = [ref.deref().name for ref in by_weight.keys() - mine]
            absent = [ref.deref().name for ref in mine - by_weight.keys()]
            raise ValueError(
                "gradients must be given for exactly the weights of this Update; "
                f"not its weights: {sorted(unknown) or 'none'}, missing: {sorted(absent) or 'none'}"
            )
        without = [ref.deref().name for ref, gradient in by_weight.items() if gradient is None]
        if without:
            raise ValueError(f"no gradient reaches {sorted(without)}: use them in the loss or leave them out of Update")
        return [tf.convert_to_tensor(by_weight[weight.ref()]) for weight in self.weights]


def _global_norm(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Euclidean norm of all gradients together, float32, accumulated in at least float32.

    It is taken as the norm of the columns' norms: XLA adds up a whole tensor one number after the other, which took
    seven times as long, and the root between the two sums keeps it from merging them.
    """
    squares = []
    for gradient in gradients:
        wide = gradient if gradient.dtype == tf.float64 else tf.cast(gradient, tf.float32)
        columns = tf.sqrt(tf.reduce_sum(tf.square(wide), axis=list(range(gradient.shape.rank - 1))))
        squares.append(tf.cast(tf.reduce_sum(tf.square(columns)), tf.float32))
    return tf.sqrt(tf.add_n(squares))
