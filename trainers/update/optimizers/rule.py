"""``Rule``: optimizers that treat one weight after the other; what is the same for all of them is here.

That is: computing in float32 at least, master weights, learning rates and decay per weight, and the guard.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import is_asynchronous, own
from tftoolkit.trainers.update.gradients import wide
from tftoolkit.trainers.update.optimizers.base import Optimizer, assign_if
from tftoolkit.trainers.update.schedules import Schedule


class Rule(Optimizer):
    """Base of the optimizers for which a step is :meth:`moved`, weight by weight.

    Slots of bfloat16 and float16 weights are float32, and so is the computation; the new weight is rounded once.

    Args:
        learning_rate: a number or a schedule.
        weight_decay: decoupled from the gradient: ``w <- w - learning_rate * weight_decay * w`` is part of each update.
            None: there is no such thing.
        master_weights: keep a float32 copy of each bfloat16 or float16 weight, update that, and round the weight from
            it: otherwise updates below half a step of the weight's type are lost, which with bfloat16 are those below
            0.2 % of the weight. A weight that is assigned (loaded, say) between two updates takes its copy along.

    Raises ValueError where the rate or the decay is negative or not finite.
    """

    takes_turns = False
    """Whether what workers of parameter servers write side by side would not add up."""

    def __init__(
        self, learning_rate: float | Schedule, *, weight_decay: float | None = None, master_weights: bool = False
    ) -> None:
        if weight_decay is not None:
            check_not_negative(weight_decay=weight_decay)
        super().__init__(learning_rate)
        self.weight_decay = weight_decay
        self.master_weights = master_weights

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        super()._adopt(weights, rate_factors, decays)
        if is_asynchronous():
            if self.takes_turns:
                raise ValueError(f"{type(self).__name__} doesn't work with parameter servers: use AdamW, for example")
            if self.master_weights:
                raise ValueError(
                    "master_weights=True overwrites what other workers of parameter servers wrote: leave it out"
                )

    def slot_names(self) -> tuple[str, ...]:
        return ("master",) if self.master_weights else ()

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        dtype = wide(weight.dtype)
        if slot == "master":
            copy = tf.cast(weight.read_value(), dtype)
            return tf.Variable(copy, trainable=False, name=slot) if dtype != weight.dtype else None
        return tf.Variable(tf.zeros_like(weight, dtype), trainable=False, name=slot)

    def masters(self) -> list[tf.Variable | None]:
        """The float32 copy of each weight; None where there is none."""
        return self.slots.get("master", [None] * len(self.weights))

    def _decay_of(self, number: int) -> float:
        """The weight decay of one weight."""
        return (self.weight_decay or 0.0) if self.decays[number] else 0.0

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        scalars, learning_rate = self.scalars(tf.cast(self.iterations + 1, tf.float32)), self.learning_rate
        for number, gradient in enumerate(gradients):
            self._take_turn(number, gradient, ok, learning_rate, scalars)
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))

    def _take_turn(
        self,
        number: int,
        gradient: tf.Tensor,
        ok: tf.Tensor,
        learning_rate: tf.Tensor,
        scalars: Sequence[tf.Tensor],
    ) -> None:
        """Move one weight; ``scalars`` are what the method of that name returned."""
        one = self.turn(number, gradient, ok, learning_rate)
        one.move(self.moved(one, *(tf.cast(scalar, one.dtype) for scalar in scalars)))

    def turn(self, number: int, gradient: tf.Tensor, ok: tf.Tensor, learning_rate: tf.Tensor) -> "Turn":
        """What moves weight ``number`` by its gradient, unless not ``ok``."""
        return Turn(self, number, gradient, ok, learning_rate)

    def scalars(self, t: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Numbers (float32) that a step needs for every weight; ``t`` counts the updates from 1."""
        return ()

    def moved(self, one: "Turn", *scalars: tf.Tensor) -> tf.Tensor:
        """The new value of a weight, whose slots this reads and writes."""
        raise NotImplementedError


class Turn:
    """One weight's turn in a step: what a rule reads of it and writes.

    Attributes:
        number: its place among the optimizer's weights.
        dtype: that of everything here, float32 at least.
        gradient: of the loss, by this weight.
        value: the weight, or its master.
        rate: the learning rate times the weight's factor.
        decay: the weight decay; 0 where it doesn't apply.
    """

    def __init__(self, rule: Rule, number: int, gradient: tf.Tensor, ok: tf.Tensor, learning_rate: tf.Tensor) -> None:
        self.number = number
        self._variable, self._ok = rule.weights[number], ok
        self._slots = {name: variables[number] for name, variables in rule.slots.items()}
        self._master = self._slots.get("master")
        self.dtype = wide(self._variable.dtype)
        self.gradient = tf.cast(gradient, self.dtype)
        self.rate = tf.cast(scaled(learning_rate, rule.rate_factors[number]), self.dtype)
        self.decay = rule._decay_of(number)
        self._old = self._value_of(self._variable)
        if self._master is not None:
            self._old_master = self._value_of(self._master)
            self.value = current(self._old_master, self._old)
        else:
            self.value = tf.cast(self._old, self.dtype)

    def read(self, slot: str) -> tf.Tensor:
        """The value of a slot."""
        return self._value_of(self._slots[slot])

    def write(self, slot: str, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """Change a slot from ``before``, what was read, unless the step is skipped. What it holds then."""
        return self._assign(self._slots[slot], before, value)

    def change(self, slot: str, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        """Read, compute and write a slot. What it holds then."""
        before = self.read(slot)
        return self.write(slot, before, function(before))

    def decayed(self, direction: tf.Tensor) -> tf.Tensor:
        """``direction`` and the decay."""
        return direction + self.decay * self.value if self.decay else direction

    def move(self, value: tf.Tensor) -> None:
        """Give the weight (and its master) a new value, unless the step is skipped."""
        if self._master is not None:
            value = self._assign(self._master, self._old_master, value)
        self._assign(self._variable, self._old, tf.cast(value, self._old.dtype))

    def _value_of(self, variable: tf.Variable) -> tf.Tensor:
        return variable.read_value()

    def _assign(self, variable: tf.Variable, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        return assign_if(self._ok, variable, before, value)


def current(copy: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """The copy in a wider type; the weight itself where it isn't the copy's rounding: it was assigned since."""
    return tf.where(tf.cast(copy, weight.dtype) == weight, copy, tf.cast(weight, copy.dtype))


def root(squares: tf.Tensor) -> tf.Tensor:
    """Where workers subtract from one square side by side, its last bit may get lost twice."""
    return tf.sqrt(tf.maximum(squares, 0.0) if is_asynchronous() else squares)


def scaled(learning_rate: tf.Tensor, factor: float) -> tf.Tensor:
    return learning_rate if factor == 1 else factor * learning_rate


def check_fractions(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, but is {value}")


def check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number that is not negative, but is {value}")
