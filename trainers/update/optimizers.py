"""Optimizers written in TensorFlow operations, for lists of ``tf.Variable``.

``Optimizer`` is the seam between :class:`tftoolkit.trainers.Update` and an update rule: a rule has ``slot_names`` and
``step``. It need not look for non-finite gradients, nor clip; the ``Update`` does. Optimizers of Keras take the same
place through :mod:`tftoolkit.trainers.update.keras_adapter`.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library
from tftoolkit.trainers.autograph import as_written
from tftoolkit.trainers.distribution.replicas import after, is_asynchronous, move, own
from tftoolkit.trainers.naming import PerWeight, tf_variable
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
    """

    weight_decay: float | None = None

    def __init__(self, learning_rate: float | Schedule) -> None:
        super().__init__()
        self.schedule: Schedule = learning_rate if callable(learning_rate) else constant(float(learning_rate))
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        self.rate_factors: tuple[float, ...] = ()
        self.decays: tuple[bool, ...] = ()

    def build(self, weights: Sequence[Any], rate_factors: Sequence[float] = (), decays: Sequence[bool] = ()) -> None:
        """Create the slots for ``weights`` (floating point). Must be called once, before the first ``step``.

        Args:
            weights: variables of TensorFlow or Keras.
            rate_factors: one number per weight; all 1 if left out.
            decays: one truth value per weight; all True if left out.

        Raises:
            ValueError: already built, no weights, a weight with a constraint (which only Keras' optimizers apply).
            TypeError: a weight that isn't a floating-point variable.
        """
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

    def global_norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Euclidean norm of all gradients together, float32, accumulated in at least float32.

        It is taken as the norm of the columns' norms: XLA adds up a whole tensor one number after the other, which took
        seven times as long, and the root between the two sums keeps it from merging them.
        """
        squares = []
        for gradient in gradients:
            values = tf.cast(gradient, wide(gradient.dtype))
            columns = tf.sqrt(tf.reduce_sum(tf.square(values), axis=list(range(gradient.shape.rank - 1))))
            squares.append(tf.cast(tf.reduce_sum(tf.square(columns)), tf.float32))
        return tf.sqrt(tf.add_n(squares))

    @property
    def learning_rate(self) -> tf.Tensor:
        """The learning rate of the next update (float32 scalar tensor)."""
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


class Sgd(Optimizer):
    """Stochastic gradient descent with (Nesterov) momentum, as in Sutskever et al. 2013.

    ``v <- momentum * v - learning_rate * g``; ``w <- w + v``, or with Nesterov's look-ahead
    ``w <- w + momentum * v - learning_rate * g``. Without momentum no slot is kept.
    """

    def __init__(self, learning_rate: float | Schedule, *, momentum: float = 0.0, nesterov: bool = False) -> None:
        _check_fraction("momentum", momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0")
        super().__init__(learning_rate)
        self.momentum = momentum
        self.nesterov = nesterov

    def slot_names(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        learning_rate = self.learning_rate
        velocities = self.slots.get("momentum", [None] * len(self.weights))
        for weight, velocity, gradient, factor in zip(
            self.weights, velocities, gradients, self.rate_factors, strict=True
        ):
            way = -tf.cast(_scaled(learning_rate, factor), weight.dtype) * gradient
            if velocity is not None:
                old_velocity = velocity.read_value()
                new_velocity = assign_if(ok, velocity, old_velocity, self.momentum * old_velocity + way)
                way = self.momentum * new_velocity + way if self.nesterov else new_velocity
            old = weight.read_value()
            assign_if(ok, weight, old, old + way)
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    With ``t`` counted from 1::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - learning_rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    so the decay follows the learning-rate schedule, as in PyTorch. ``weight_decay=0`` is Adam (Kingma & Ba 2015).

    The moments of bfloat16 and float16 weights are float32, and so is the computation; the new weight is rounded once.

    Args:
        learning_rate: a number or a schedule.
        beta_1, beta_2, epsilon, weight_decay: as above.
        master_weights: keep a float32 copy of each bfloat16 or float16 weight, update that, and round the weight from
            it: otherwise updates below half a step of the weight's type are lost, which with bfloat16 are those below
            0.2 % of the weight. A weight that is assigned (loaded, say) between two updates takes its copy along.
        fused: update all weights by one compiled op (:func:`tftoolkit.custom_ops.adamw`; one for each type), and take
            the gradients' norm by another, in place of a dozen TensorFlow operations per weight. It needs a C++
            compiler (and a CUDA toolkit for weights on a GPU), weights of at most 32 bits and no parameter servers.
            Checkpoints are those of ``fused=False``; results differ from it by rounding.

    Raises:
        BuildError: fused, and the ops can't be compiled.
        ValueError, TypeError: a number out of range; from ``build`` (which the ``Update`` calls): parameter servers and
            ``fused`` or ``master_weights``; fused, and a weight that is float64, or on a GPU that the op isn't built
            for.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        master_weights: bool = False,
        fused: bool = False,
    ) -> None:
        _check_fraction("beta_1", beta_1)
        _check_fraction("beta_2", beta_2)
        for name, value in (("epsilon", epsilon), ("weight_decay", weight_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number that is not negative, but is {value}")
        super().__init__(learning_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.weight_decay: float = weight_decay
        self.master_weights = master_weights
        self.fused = fused
        if fused:  # compiled here, where an error can be shown, and not while a step is traced
            _ = custom_ops.adamw, custom_ops.global_norm

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        super()._adopt(weights, rate_factors, decays)
        for name, used in (("fused", self.fused), ("master_weights", self.master_weights)):
            if used and is_asynchronous():
                raise ValueError(f"{name}=True overwrites what other workers of parameter servers wrote: leave it out")
        if self.fused:
            _check_fusible(self.weights)

    def slot_names(self) -> tuple[str, ...]:
        return ("m", "v", "master") if self.master_weights else ("m", "v")

    def _new_slot(self, slot: str, weight: tf.Variable) -> tf.Variable | None:
        dtype = wide(weight.dtype)
        if slot == "master":
            copy = tf.cast(weight.read_value(), dtype)
            return tf.Variable(copy, trainable=False, name=slot) if dtype != weight.dtype else None
        return tf.Variable(tf.zeros_like(weight, dtype), trainable=False, name=slot)

    def global_norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        return custom_ops.global_norm(gradients) if self.fused else super().global_norm(gradients)

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        t = tf.cast(self.iterations + 1, tf.float32)
        if self.fused:
            self._step_at_once(gradients, ok, t)
        else:
            self._step_by_weight(gradients, ok, t)
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))

    def _masters(self) -> list[tf.Variable | None]:
        return self.slots.get("master", [None] * len(self.weights))

    def _step_at_once(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor, t: tf.Tensor) -> None:
        lists = (self.weights, self.slots["m"], self.slots["v"], self._masters())
        kept = [[None if variable is None else own(variable) for variable in each] for each in lists]
        w, m, v, master = ([None if x is None else x.read_value() for x in each] for each in kept)
        updated = custom_ops.adamw(
            ok,
            tf.cast(self.learning_rate, tf.float32),
            t,
            w,
            m,
            v,
            list(gradients),
            master=master,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            rate_factors=self.rate_factors,
            weight_decays=[self.weight_decay if decays else 0.0 for decays in self.decays],
        )
        for variables, values in zip(kept, updated, strict=True):
            for variable, value in zip(variables, values, strict=True):
                if variable is not None:
                    variable.assign(value)

    def _step_by_weight(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor, t: tf.Tensor) -> None:
        learning_rate = self.learning_rate
        # Reciprocals: one division of scalars instead of one per weight.
        m_correction = 1.0 / _one_minus_power(self.beta_1, t)
        v_correction = 1.0 / _one_minus_power(self.beta_2, t)
        columns = (self.weights, self.slots["m"], self.slots["v"], self._masters(), gradients, self.rate_factors)
        for weight, m, v, master, gradient, factor, decays in zip(*columns, self.decays, strict=True):
            rate, m_scale, v_scale, gradient = (
                tf.cast(x, m.dtype) for x in (_scaled(learning_rate, factor), m_correction, v_correction, gradient)
            )
            old, old_m = weight.read_value(), m.read_value()
            with after(old_m):
                old_v = v.read_value()
            # v is written before m and read after it: with another worker's part of m, but without its part of v, a
            # gradient that was 0 until now would be divided by epsilon.
            new_v = assign_if(ok, v, old_v, self.beta_2 * old_v + (1.0 - self.beta_2) * tf.square(gradient))
            with after(new_v):
                new_m = assign_if(ok, m, old_m, self.beta_1 * old_m + (1.0 - self.beta_1) * gradient)
            direction = new_m * m_scale / (_root(new_v * v_scale) + self.epsilon)
            decay = self.weight_decay if decays else 0.0
            before = tf.cast(old, m.dtype)
            if master is not None:
                copy = master.read_value()
                # What isn't the rounding of its copy was assigned since.
                before = tf.where(tf.cast(copy, old.dtype) == old, copy, before)
            moved = before - rate * (direction + decay * before)
            if master is not None:
                moved = assign_if(ok, master, copy, moved)
            assign_if(ok, weight, old, tf.cast(moved, old.dtype))


def _check_fusible(weights: Sequence[tf.Variable]) -> None:
    for weight in weights:
        if weight.dtype.size > tf.float32.size:
            raise TypeError(f"fused=True is for weights of at most 32 bits, but {weight.name} is {weight.dtype.name}")
        if "GPU" in weight.device and "CUDA" not in library.load_builtin("adamw").op("AdamW").handlers:
            raise ValueError(
                f"{weight.name} is on {weight.device}, but the op of fused=True was built for the CPU alone: install a "
                "CUDA toolkit (`tftoolkit doctor` tells what is missing)"
            )


def assign_if(ok: tf.Tensor, variable: tf.Variable, before: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """Change ``variable`` from ``before``, what it holds, to ``value`` if ``ok`` (bool scalar), else not by a bit.

    Returns what the variable holds then. What depends on the new value should be computed from that: XLA then updates
    the variable in place, where it would otherwise copy it first to compute the value a second time.
    """
    return move(variable, before, tf.where(ok, value, before))


def _root(squares: tf.Tensor) -> tf.Tensor:
    """Where workers subtract from one square side by side, its last bit may get lost twice."""
    return tf.sqrt(tf.maximum(squares, 0.0) if is_asynchronous() else squares)


def _scaled(learning_rate: tf.Tensor, factor: float) -> tf.Tensor:
    return learning_rate if factor == 1 else factor * learning_rate


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, but is {value}")
