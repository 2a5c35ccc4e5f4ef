"""Optimizers written in TensorFlow operations, for lists of ``tf.Variable``.

``Optimizer`` is the seam between :class:`tftoolkit.trainers.Update` and an update rule: whatever has its four members
(``iterations``, ``slots``, ``build``, ``step``) can be driven by an ``Update``. A rule need not care for non-finite
gradients, nor for clipping; the ``Update`` does.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

from tftoolkit.trainers.schedules import Schedule, constant


class Optimizer(tf.Module):
    """Base class: a learning rate, a step counter and slots (one variable per weight and slot name).

    Args:
        learning_rate: a number, or a schedule (int64 scalar tensor ``iterations`` -> float32 scalar tensor).
    """

    # The weights belong to the model: reached through the optimizer they would get a second name.
    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"weights", *tf.Module._TF_MODULE_IGNORED_PROPERTIES})

    def __init__(self, learning_rate: float | Schedule) -> None:
        super().__init__()
        self.schedule: Schedule = learning_rate if callable(learning_rate) else constant(float(learning_rate))
        self.iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        self.slots: dict[str, list[tf.Variable]] = {}
        self.weights: tuple[tf.Variable, ...] = ()

    def build(self, weights: Sequence[tf.Variable]) -> None:
        """Create the slots for ``weights`` (floating point). Must be called once, before the first ``step``.

        Raises:
            ValueError: already built, or no weights.
            TypeError: a weight that isn't a floating-point ``tf.Variable``.
        """
        if self.weights:
            raise ValueError(f"this {type(self).__name__} already belongs to other weights: make a new one")
        if not weights:
            raise ValueError("there are no weights to train; build the model (call it once on a sample batch) first")
        for weight in weights:
            if not isinstance(weight, tf.Variable) or not weight.dtype.is_floating:
                kind, name = type(weight), getattr(weight, "name", weight)
                raise TypeError(f"weights must be floating-point tf.Variables, but {name} is a {kind}")
        self.weights = tuple(weights)
        self.slots = {
            slot: [tf.Variable(tf.zeros_like(weight), trainable=False, name=slot) for weight in weights]
            for slot in self.slot_names()
        }

    def slot_names(self) -> tuple[str, ...]:
        """The names of the variables that this rule keeps for each weight."""
        raise NotImplementedError

    def step(self, gradients: Sequence[tf.Tensor]) -> None:
        """Apply one update; ``gradients`` are dense tensors in the order of the ``weights`` given to ``build``."""
        raise NotImplementedError

    @property
    def learning_rate(self) -> tf.Tensor:
        """The learning rate of the next update (float32 scalar tensor)."""
        return self.schedule(self.iterations.read_value())


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

    def step(self, gradients: Sequence[tf.Tensor]) -> None:
        learning_rate = self.learning_rate
        velocities = self.slots.get("momentum", [None] * len(self.weights))
        for weight, velocity, gradient in zip(self.weights, velocities, gradients, strict=True):
            move = -tf.cast(learning_rate, weight.dtype) * gradient
            if velocity is not None:
                new_velocity = self.momentum * velocity + move
                velocity.assign(new_velocity)
                move = self.momentum * new_velocity + move if self.nesterov else new_velocity
            weight.assign(weight + move)
        self.iterations.assign_add(1)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    With ``t`` counted from 1::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - learning_rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    so the decay follows the learning-rate schedule, as in PyTorch. ``weight_decay=0`` is Adam (Kingma & Ba 2015).
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
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
        self.weight_decay = weight_decay

    def slot_names(self) -> tuple[str, ...]:
        return ("m", "v")

    def step(self, gradients: Sequence[tf.Tensor]) -> None:
        learning_rate = self.learning_rate
        t = tf.cast(self.iterations + 1, tf.float32)
        # Reciprocals: one division of scalars instead of one per weight.
        m_correction = 1.0 / _one_minus_power(self.beta_1, t)
        v_correction = 1.0 / _one_minus_power(self.beta_2, t)
        for weight, m, v, gradient in zip(self.weights, self.slots["m"], self.slots["v"], gradients, strict=True):
            rate, m_scale, v_scale = (tf.cast(x, weight.dtype) for x in (learning_rate, m_correction, v_correction))
            new_m = self.beta_1 * m + (1.0 - self.beta_1) * gradient
            new_v = self.beta_2 * v + (1.0 - self.beta_2) * tf.square(gradient)
            direction = new_m * m_scale / (tf.sqrt(new_v * v_scale) + self.epsilon)
            weight.assign(weight - rate * (direction + self.weight_decay * weight))
            m.assign(new_m)
            v.assign(new_v)
        self.iterations.assign_add(1)


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, but is {value}")
