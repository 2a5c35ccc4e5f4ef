"""``Optimizer``, the seam between :class:`tftoolkit.trainers.Update` and an update rule.

A rule has ``slot_names`` and ``step``. It need not look for non-finite gradients, nor clip; the ``Update`` does.
Optimizers of Keras take the same place through :mod:`tftoolkit.trainers.update.keras_adapter`.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.autograph import as_written
from tftoolkit.trainers.distribution.replicas import move
from tftoolkit.trainers.naming import PerWeight, tf_variable
from tftoolkit.trainers.update import slices
from tftoolkit.trainers.update.gradients import wide
from tftoolkit.trainers.update.schedules import Adjustable, Schedule, constant


class Optimizer(PerWeight):
    """Base class: a learning rate, a step counter and slots (one variable per weight and slot name).

    Args:
        learning_rate: a number, or a schedule (int64 scalar tensor ``iterations`` -> float32 scalar tensor).

    Attributes:
        iterations: int64 variable, the number of updates made.
        rate_factors: one number per weight, by which its learning rate is multiplied.
        decays: one truth value per weight, whether weight decay applies to it.
        names: one name per weight, that below the model.

    Raises ValueError where the learning rate is a number that is negative or not finite.
    """

    weight_decay: float | None = None
    """Decoupled from the gradient; None: the rule has no such thing."""
    sparse = False
    """Whether ``step`` takes ``tf.IndexedSlices`` too."""

    def __init__(self, learning_rate: float | Schedule) -> None:
        super().__init__()
        self.schedule: Schedule = learning_rate if callable(learning_rate) else constant(float(learning_rate))
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        self.rate_factors: tuple[float, ...] = ()
        self.decays: tuple[bool, ...] = ()
        self.names: tuple[str, ...] = ()

    def build(
        self,
        weights: Sequence[Any],
        rate_factors: Sequence[float] = (),
        decays: Sequence[bool] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Create the slots for ``weights`` (floating point). Must be called once, before the first ``step``.

        Args:
            weights: variables of TensorFlow or Keras.
            rate_factors: one number per weight; all 1 if left out.
            decays: one truth value per weight; all True if left out.
            names: one name per weight; TensorFlow's if left out.

        Raises:
            ValueError: already built, no weights, a weight with a constraint (which only Keras' optimizers apply).
            TypeError: a weight that isn't a floating-point variable.
        """
        self.names = tuple(names) or tuple(weight.name for weight in weights)
        self._adopt(weights, rate_factors, decays)
        for weight in weights:
            if getattr(weight, "constraint", None) is not None:
                raise ValueError(
                    f"{weight.name} has the constraint {weight.constraint}, which only an optimizer of Keras applies"
                )
        self.slots = {slot: [self._new_slot(slot, weight) for weight in self.weights] for slot in self.slot_names()}

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        if self.weights:
            raise ValueError(f"this {type(self).__name__} already belongs to other weights: make a new one")
        if not weights:
            raise ValueError("there are no weights to train; build the model (call it once on a sample batch) first")
        variables = [tf_variable(weight) for weight in weights]
        for variable in variables:
            if not isinstance(variable, tf.Variable) or not variable.dtype.is_floating:
                kind, name = type(variable), getattr(variable, "name", variable)
                raise TypeError(f"weights must be floating-point variables, but {name} is a {kind}")
        self.weights = tuple(variables)
        self.rate_factors = tuple(rate_factors) or (1.0,) * len(variables)
        self.decays = tuple(decays) or (True,) * len(variables)

    def slot_names(self) -> tuple[str, ...]:
        """The names of the variables that this rule keeps for each weight."""
        raise NotImplementedError

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        """The variable of this name for a weight; None if that weight needs none."""
        return tf.Variable(tf.zeros_like(weight), trainable=False, name=slot)

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        """Apply one update if ``ok`` (bool scalar); otherwise every variable keeps its value bit for bit.

        ``gradients`` are dense tensors in the order of the ``weights`` given to ``build``; anything if not ``ok``.
        """
        raise NotImplementedError

    def summed(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        """Rows of one index added up, as ``step`` and ``global_norm`` take them; asked for if ``sparse``."""
        return slices.summed(gradient)

    def global_norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Euclidean norm of all gradients together, float32, accumulated in at least float32."""
        squares = [tf.cast(tf.reduce_sum(tf.square(_column_norms(gradient))), tf.float32) for gradient in gradients]
        return tf.sqrt(tf.add_n(squares))

    @property
    def learning_rate(self) -> tf.Tensor:
        """The learning rate of the next update (float32 scalar tensor).

        It can be assigned where the schedule is a ``schedules.Adjustable``; elsewhere that raises AttributeError.
        """
        return as_written(self.schedule)(self.iterations.read_value())

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if not isinstance(self.schedule, Adjustable):
            kind = type(self).__name__
            raise AttributeError(
                f"the learning rate of this {kind} is compiled in: make it {kind}(schedules.Adjustable(0.1)), "
                "whose rate can be assigned and is part of every checkpoint"
            )
        self.schedule.rate.assign(value)

    @contextlib.contextmanager
    def following(self, schedule: Schedule) -> Iterator[None]:
        """Another schedule for a while, for what is traced meanwhile."""
        before, self.schedule = self.schedule, schedule
        try:
            yield
        finally:
            self.schedule = before


def assign_if(ok: tf.Tensor, variable: tf.Variable, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Change ``variable`` from ``before``, what it holds, to ``value`` if ``ok`` (bool scalar), else not by a bit.

    Returns what the variable holds then. What depends on the new value should be computed from that: XLA then updates
    the variable in place, where it would otherwise copy it first to compute the value a second time.
    """
    return move(variable, before, tf.where(ok, value, before))


def norm(tensor: tf.Tensor) -> tf.Tensor:
    """Euclidean norm (Frobenius norm of a matrix), scalar, in float32 at least."""
    return tf.sqrt(tf.reduce_sum(tf.square(_column_norms(tensor))))


def _column_norms(tensor: tf.Tensor) -> tf.Tensor:
    """XLA adds up a whole tensor one number after the other, which took seven times as long as columns first; the root
    between the two sums keeps it from merging them."""
    values = tf.cast(tensor, wide(tensor.dtype))
    return tf.sqrt(tf.reduce_sum(tf.square(values), axis=list(range(tensor.shape.rank - 1))))
