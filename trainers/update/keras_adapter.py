"""Optimizers of Keras, either generation, in the place of ours."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.autograph import as_written
from tftoolkit.trainers.distribution.replicas import own
from tftoolkit.trainers.naming import KERAS_3, TF_KERAS, keras_generation, tf_variable
from tftoolkit.trainers.update.optimizers import Optimizer
from tftoolkit.trainers.update.schedules import Schedule


def as_optimizer(optimizer: Any) -> Optimizer:
    """An optimizer of this package as it is; one of Keras behind :class:`KerasOptimizer`.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if keras_generation(optimizer) and hasattr(optimizer, "apply_gradients"):
        return KerasOptimizer(optimizer)
    raise TypeError(
        "optimizer must come from tftoolkit.trainers.update.optimizers, keras.optimizers or tf_keras.optimizers, "
        f"but is {optimizer!r}"
    )


class KerasOptimizer(Optimizer):
    """Drives an optimizer of Keras 3 or tf_keras.

    Its variables get names that don't depend on Keras' own. A rate factor shortens the way that the optimizer moved a
    weight; for every rule whose moves are proportional to the learning rate (all of Keras' own are, with the factor
    constant) that is the rule with that multiple of the rate, but for one rounding.

    Raises:
        ValueError: the optimizer counts steps otherwise than the ``Update`` (gradient accumulation, loss scaling), or
            is already in use.
        TypeError: one of tf_keras' legacy optimizers, which keep their variables elsewhere; its Nadam, which is wrong
            in a ``tf.function``.
    """

    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"_keras_weights", *Optimizer._TF_MODULE_IGNORED_PROPERTIES})

    def __init__(self, optimizer: Any) -> None:
        # Not Optimizer's: learning rate and step counter are those of Keras.
        super(Optimizer, self).__init__()
        kind = type(optimizer).__name__
        if not hasattr(optimizer, "add_variable_from_reference"):
            raise TypeError(f"tf_keras.optimizers.legacy.{kind} isn't supported: use tf_keras.optimizers.{kind}")
        self._generation = keras_generation(optimizer)
        if kind == "Nadam" and self._generation == TF_KERAS:
            raise TypeError("Nadam of tf_keras counts in Python and is wrong inside compiled steps: use another one")
        if "LossScale" in kind:
            raise ValueError(f"{kind} would scale the loss twice: give the inner optimizer and precision='float16'")
        if getattr(optimizer, "gradient_accumulation_steps", None):
            raise ValueError(
                "gradient_accumulation_steps of Keras ticks schedules and averages at every micro-batch: "
                "leave it out and use Update(accumulate=…)"
            )
        if getattr(optimizer, "built", False) or getattr(optimizer, "_built", False):
            raise ValueError(f"this {kind} already belongs to other weights: make a new one")
        self._keras = optimizer
        self._keras_weights: tuple[Any, ...] = ()
        self.weight_decay = getattr(optimizer, "weight_decay", None)
        self.state: dict[str, tf.Variable] = {}
        self._followed: Schedule | None = None

    def build(
        self,
        weights: Sequence[Any],
        rate_factors: Sequence[float] = (),
        decays: Sequence[bool] = (),
        names: Sequence[str] = (),
    ) -> None:
        self._adopt(weights, rate_factors, decays)
        # Keras 3 looks for constraints on its own variables, tf_keras knows nothing but TensorFlow's.
        self._keras_weights = tuple(weights) if self._generation == KERAS_3 else self.weights
        excluded = [weight for weight, decay in zip(self._keras_weights, self.decays, strict=True) if not decay]
        if excluded:
            self._keras.exclude_from_weight_decay(var_list=excluded)
        self._record_slots()
        if self._generation == KERAS_3:  # which would add up the gradients of all replicas again, and has no option
            self._keras._all_reduce_sum_gradients = lambda gradients_and_weights: gradients_and_weights
        recorded = {variable.ref() for variables in self.slots.values() for variable in variables}
        for name, value in vars(self._keras).items():
            variable = tf_variable(value)
            if isinstance(variable, tf.Variable) and variable.ref() not in recorded:
                self.state[name.strip("_")] = variable
                recorded.add(variable.ref())
        self.iterations = tf_variable(self._keras.iterations)
        for value in self._keras.variables:
            variable = tf_variable(value)
            if variable.ref() not in recorded:
                self.state[_unused(variable.name, self.state)] = variable

    def _record_slots(self) -> None:
        """Build the Keras optimizer, writing down which variable it makes for which weight."""
        made: dict[str, dict[Any, tf.Variable]] = {}
        make = self._keras.add_variable_from_reference

        def record(reference: Any, *args: Any, **kwargs: Any) -> Any:
            variable = make(reference, *args, **kwargs)
            slot = kwargs.get("name") or kwargs.get("variable_name") or (args[0] if args else "slot")
            made.setdefault(slot, {})[tf_variable(reference).ref()] = tf_variable(variable)
            return variable

        def record_keras_3(reference_variable: Any, *args: Any, **kwargs: Any) -> Any:
            return record(reference_variable, *args, **kwargs)

        def record_tf_keras(model_variable: Any, *args: Any, **kwargs: Any) -> Any:
            return record(model_variable, *args, **kwargs)

        self._keras.add_variable_from_reference = record_keras_3 if self._generation == KERAS_3 else record_tf_keras
        try:
            self._keras.build(list(self._keras_weights))
        finally:
            del self._keras.add_variable_from_reference
        for slot, by_weight in made.items():
            if len(by_weight) == len(self.weights):
                self.slots[slot] = [by_weight[weight.ref()] for weight in self.weights]

    def slot_names(self) -> tuple[str, ...]:
        return tuple(self.slots)

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        if self._followed is not None:
            rate = tf_variable(self._keras._learning_rate)
            own(rate).assign(tf.cast(as_written(self._followed)(self.iterations), rate.dtype))
        guarded = [*self.weights, *self.variables]
        before = [variable.read_value() for variable in guarded]
        # Whoever calls this has already added up the gradients of all replicas.
        options = {"skip_gradients_aggregation": True} if self._generation == TF_KERAS else {}
        self._keras.apply_gradients(list(zip(gradients, self._keras_weights, strict=True)), **options)
        for weight, old, rate_factor in zip(self.weights, before, self.rate_factors, strict=False):
            if rate_factor != 1:
                own(weight).assign(old + tf.cast(rate_factor, weight.dtype) * (weight.read_value() - old))
        for variable, old in zip(guarded, before, strict=True):
            own(variable).assign(tf.where(ok, variable.read_value(), old))

    @contextlib.contextmanager
    def following(self, schedule: Schedule) -> Iterator[None]:
        before = self._keras._learning_rate
        if isinstance(
            tf_variable(before), tf.Variable
        ):  # of which Keras keeps track: it stays, and is set at each step
            self._followed = schedule
        else:
            base = next(kind for kind in type(before).__mro__ if kind.__name__ == "LearningRateSchedule")
            methods = {"__init__": lambda self: None, "__call__": lambda self, step: schedule(step)}
            object.__setattr__(self._keras, "_learning_rate", type("Followed", (base,), methods)())
        try:
            yield
        finally:
            self._followed = None
            object.__setattr__(self._keras, "_learning_rate", before)

    @property
    def learning_rate(self) -> tf.Tensor:
        if self._followed is not None:
            return as_written(self._followed)(self.iterations)
        # tf_keras' own property tells the rate of the last update, not of the next.
        schedule = getattr(self._keras, "_learning_rate", None)
        if self._generation == TF_KERAS and callable(schedule) and not isinstance(schedule, tf.Variable):
            return tf.cast(as_written(schedule)(self.iterations), tf.float32)
        return tf.cast(tf.convert_to_tensor(self._keras.learning_rate), tf.float32)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._keras.learning_rate = value  # a variable, or Keras says that it is a schedule


def _unused(name: str, taken: dict[str, tf.Variable]) -> str:
    stem = re.sub(r"[:/].*", "", name)
    return next(
        name for number in range(len(taken) + 1) if (name := f"{stem}_{number}" if number else stem) not in taken
    )
