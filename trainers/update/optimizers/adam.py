"""Adam and AdamW, plain and as compiled ops."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library, variables
from tftoolkit.trainers.distribution.replicas import after, is_asynchronous, own
from tftoolkit.trainers.update.optimizers.rule import Rule, Turn, check_fractions, check_not_negative, root
from tftoolkit.trainers.update.schedules import Schedule


class Moments(Rule):
    """Base of the rules that divide a mean of the gradients by the root of a mean of their squares."""

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        weight_decay: float | None,
        master_weights: bool,
    ) -> None:
        check_fractions(beta_1=beta_1, beta_2=beta_2)
        check_not_negative(epsilon=epsilon)
        super().__init__(learning_rate, weight_decay=weight_decay, master_weights=master_weights)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def slot_names(self) -> tuple[str, ...]:
        return ("m", "v", *super().slot_names())

    def scalars(self, t: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # Reciprocals: one division of scalars instead of one per weight.
        return 1.0 / _one_minus_power(self.beta_1, t), 1.0 / _one_minus_power(self.beta_2, t)

    def direction(self, one: Turn, m_scale: tf.Tensor, v_scale: tf.Tensor) -> tf.Tensor:
        """``m' / (sqrt(v') + epsilon)`` as :class:`AdamW` describes it."""
        old_m = one.read("m")
        with after(old_m):
            old_v = one.read("v")
        # v is written before m and read after it: with another worker's part of m, but without its part of v, a
        # gradient that was 0 until now would be divided by epsilon.
        v = one.write("v", old_v, self.beta_2 * old_v + (1.0 - self.beta_2) * tf.square(one.gradient))
        with after(v):
            m = one.write("m", old_m, self.beta_1 * old_m + (1.0 - self.beta_1) * one.gradient)
        return m * m_scale / (root(v * v_scale) + self.epsilon)


class Adam(Moments):
    """Adam (Kingma & Ba 2015): :class:`AdamW` without weight decay.

    Args:
        learning_rate: a number or a schedule.
        beta_1, beta_2: decay of the two moments, in [0, 1).
        epsilon: added to the square root of the second.
        master_weights: keep a float32 copy of each bfloat16 or float16 weight.
        fused: update all weights by one compiled op.

    More on these, and the errors, stand at :class:`AdamW`.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        master_weights: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__(
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=None,
            master_weights=master_weights,
        )
        self.fused = fused
        if fused:  # compiled here, where an error can be shown, and not while a step is traced
            _ = custom_ops.adamw, custom_ops.global_norm

    def _adopt(self, weights: Sequence[Any], rate_factors: Sequence[float], decays: Sequence[bool]) -> None:
        super()._adopt(weights, rate_factors, decays)
        if self.fused and is_asynchronous():
            raise ValueError("fused=True overwrites what other workers of parameter servers wrote: leave it out")
        if self.fused:
            _check_fusible(self.weights)

    def global_norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        return custom_ops.global_norm(gradients) if self.fused else super().global_norm(gradients)

    def step(self, gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        if not self.fused:
            super().step(gradients, ok)
            return
        self._move_at_once(range(len(self.weights)), gradients, ok)
        own(self.iterations).assign_add(tf.cast(ok, tf.int64))

    def moved(self, one: Turn, *scalars: tf.Tensor) -> tf.Tensor:
        return one.value - one.rate * one.decayed(self.direction(one, *scalars))

    def _move_at_once(self, places: Sequence[int], gradients: Sequence[tf.Tensor], ok: tf.Tensor) -> None:
        """Move the weights at these places, by as many gradients."""
        lists = (self.weights, self.slots["m"], self.slots["v"], self.masters())
        kept = [[None if each[i] is None else own(each[i]) for i in places] for each in lists]
        w, m, v, master = ([None if x is None else variables.memory(x, ok) for x in each] for each in kept)
        updated = custom_ops.adamw(
            ok,
            tf.cast(self.learning_rate, tf.float32),
            tf.cast(self.iterations + 1, tf.float32),
            w,
            m,
            v,
            list(gradients),
            master=master,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            rate_factors=[self.rate_factors[i] for i in places],
            weight_decays=[self._decay_of(i) for i in places],
        )
        for each, values in zip(kept, updated, strict=True):
            for variable, value in zip(each, values, strict=True):
                if variable is not None:
                    variable.assign(value)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    With ``t`` counted from 1::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - learning_rate * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    so the decay follows the learning-rate schedule, as in PyTorch. ``weight_decay=0`` is Adam (Kingma & Ba 2015).

    Args:
        learning_rate, master_weights: as for every :class:`Rule`.
        beta_1, beta_2, epsilon, weight_decay: as above.
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
        check_not_negative(weight_decay=weight_decay)
        super().__init__(
            learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, master_weights=master_weights, fused=fused
        )
        self.weight_decay = weight_decay


def _check_fusible(weights: Sequence[tf.Variable]) -> None:
    for weight in weights:
        if weight.dtype.size > tf.float32.size:
            raise TypeError(f"fused=True is for weights of at most 32 bits, but {weight.name} is {weight.dtype.name}")
        if "GPU" in weight.device and "CUDA" not in library.load_builtin("adamw").op("AdamW").handlers:
            raise ValueError(
                f"{weight.name} is on {weight.device}, but the op of fused=True was built for the CPU alone: install a "
                "CUDA toolkit (`tftoolkit doctor` tells what is missing)"
            )


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)
