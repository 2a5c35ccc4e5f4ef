"""One update of Adam with decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

One op, ``TfToolkit>AdamW``, for all weights of a model together; ``trainers.optimizers.AdamW(fused=True)`` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_update = library.load_builtin("adamw").op("AdamW")


def adamw(
    apply: Any,
    rate: Any,
    t: Any,
    weights: Sequence[Any],
    m: Sequence[Any],
    v: Sequence[Any],
    gradients: Sequence[Any],
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    rate_factors: Sequence[float] | None = None,
    weight_decays: Sequence[float] | None = None,
    name: str | None = None,
) -> Any:
    """Moves the weights and their moments by one step.

    For each weight ``w``::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - rate * rate_factor * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    Args:
      apply: bool scalar; if it is False, everything stays as it is, bit for bit.
      rate: float32 scalar, the learning rate.
      t: float32 scalar, the number of this update, counted from 1.
      weights, m, v, gradients: float32 tensors, as many of each, of the same shapes; they may be empty.
      beta_1, beta_2: how much of the moments is kept; at least 0 and less than 1.
      epsilon: added to the root of the second moment.
      rate_factors: one number per weight, by which the rate is multiplied; all 1 if left out.
      weight_decays: one number per weight; all 0 if left out, which is Adam (Kingma & Ba 2015).

    Returns:
      The new weights, m and v: a named tuple of three lists. They take the memory of the old ones where nobody else
      needs these. Differentiable to any order, but not by ``t``; where v and the gradient are 0, so is the root,
      which has no derivative there, and NaN comes out.

    Raises:
      ValueError: a beta out of range, or lists of different lengths.
      TypeError: a list is empty.
      tf.errors.InvalidArgumentError: tensors of different shapes for one weight.
    """
    for label, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{label} must be at least 0 and less than 1, but is {beta}")
    count = len(weights)
    factors = [1.0] * count if rate_factors is None else list(rate_factors)
    decays = [0.0] * count if weight_decays is None else list(weight_decays)
    if not len(factors) == len(decays) == count:
        raise ValueError(
            f"{count} weights need as many rate factors and decays, but there are {len(factors)} and {len(decays)}"
        )
    options = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    inputs = (apply, rate, t, weights, m, v, gradients)
    return _update(*inputs, **options, rate_factors=factors, weight_decays=decays, name=name)


@_update.reference
def _(
    apply: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    w: list[tf.Tensor],
    m: list[tf.Tensor],
    v: list[tf.Tensor],
    g: list[tf.Tensor],
    *,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    rate_factors: Sequence[float],
    weight_decays: Sequence[float],
) -> tuple[list[tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
    import tensorflow as tf

    t = tf.stop_gradient(t)  # a number of steps
    rest_1, rest_2 = _one_minus_power(beta_1, t), _one_minus_power(beta_2, t)

    def update(*old: Any) -> list[tf.Tensor]:
        w, m, v, g, factor, decay = old
        new_m = beta_1 * m + (1 - beta_1) * g
        new_v = beta_2 * v + (1 - beta_2) * tf.square(g)
        direction = new_m / rest_1 / (tf.sqrt(new_v / rest_2) + epsilon)
        new_w = w - rate * factor * (direction + decay * w)
        return [tf.where(apply, new, before) for new, before in zip((new_w, new_m, new_v), old[:3], strict=True)]

    per_weight = [update(*old) for old in zip(w, m, v, g, rate_factors, weight_decays, strict=True)]
    new_w, new_m, new_v = (list(tensors) for tensors in zip(*per_weight, strict=True))
    return new_w, new_m, new_v


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    import tensorflow as tf

    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)


_update.differentiate_reference()
