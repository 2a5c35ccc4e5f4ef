"""One update of Adam with decoupled weight decay (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101).

.. math:: m_t = \\beta_1 m_{t-1} + (1 - \\beta_1) g_t \\qquad v_t = \\beta_2 v_{t-1} + (1 - \\beta_2) g_t^2 \\qquad
   w_t = w_{t-1} - \\eta \\left( \\frac{m_t / (1 - \\beta_1^t)}{\\sqrt{v_t / (1 - \\beta_2^t)} + \\epsilon}
   + \\lambda w_{t-1} \\right)

One op, ``TfToolkit>AdamW``, for all weights of a model together, and ``TfToolkit>AdamWMaster`` for weights that have a
float32 master; ``trainers.optimizers.AdamW(fused=True)`` calls them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import grouping, library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("adamw")
_update = _library.op("AdamW")
_with_master = _library.op("AdamWMaster")


def adamw(
    apply: Any,
    rate: Any,
    t: Any,
    weights: Sequence[Any],
    m: Sequence[Any],
    v: Sequence[Any],
    gradients: Sequence[Any],
    *,
    master: Sequence[Any] | None = None,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-8,
    rate_factors: Sequence[float] | None = None,
    weight_decays: Sequence[float] | None = None,
    name: str | None = None,
) -> Any:
    """Moves the weights and their moments by one step.

    For each weight ``w``, in float32::

        m <- beta_1 * m + (1 - beta_1) * g            m' = m / (1 - beta_1^t)
        v <- beta_2 * v + (1 - beta_2) * g^2          v' = v / (1 - beta_2^t)
        w <- w - rate * rate_factor * (m' / (sqrt(v') + epsilon) + weight_decay * w)

    A weight of bfloat16 or float16 is rounded once, to the nearest (ties to even). What is less than half a step of its
    dtype is lost then, each time anew: a bfloat16 weight of 1 does not move by less than 0.002, and Adam moves weights
    by about ``rate``. Therefore give ``master``, the same weights in float32: they are what is moved, and the weight is
    the master's rounding. Where a weight is no longer that, it has been assigned since, and the update begins from it.

    Args:
      apply: bool scalar; if it is False, everything stays as it is, bit for bit.
      rate: float32 scalar, the learning rate.
      t: float32 scalar, the number of this update, counted from 1.
      weights: tensors of float32, bfloat16 or float16, any shapes, which may be empty.
      m, v: float32 tensors, as many, of the same shapes.
      gradients: as many, of the same shapes; each float32, bfloat16 or float16, whatever its weight is.
      master: for each weight of bfloat16 or float16 a float32 tensor of its shape, or None for a weight that has none,
        as one of float32. None: for all.
      beta_1, beta_2: how much of the moments is kept; at least 0 and less than 1.
      epsilon: added to the root of the second moment.
      rate_factors: one number per weight, by which the rate is multiplied; all 1 if left out.
      weight_decays: one number per weight; all 0 if left out, which is Adam (Kingma & Ba 2015).

    Returns:
      The new weights, m, v and, where ``master`` was given, masters: a named tuple of three or four lists. They take
      the memory of the old ones where nobody else needs these. Differentiable to any order, but not by ``t``; where v
      and the gradient are 0, so is the root, which has no derivative there, and NaN comes out. Each combination of
      dtypes costs a call of an op.

    Raises:
      ValueError: a beta out of range, lists of different lengths, a master of a float32 weight.
      TypeError: a list is empty.
      tf.errors.InvalidArgumentError: tensors of different shapes for one weight, or of another dtype.
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
    tensors = {"weights": weights, "m": m, "v": v, "gradients": gradients}
    masters = [None] * count if master is None else master
    lengths = {label: len(each) for label, each in (tensors | {"master": masters}).items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all lists must have the same length, but {lengths}")
    kinds = [
        (grouping.dtype_name(weight), grouping.dtype_name(gradient), wide is not None)
        for weight, gradient, wide in zip(weights, gradients, masters, strict=True)
    ]
    if ("float32", True) in {(dtype, has_master) for dtype, _, has_master in kinds}:
        raise ValueError("master: a float32 weight is its own master, give None for it")
    found: list[list[Any]] = [[None] * count for _ in range(3 if master is None else 4)]
    for places in grouping.by_key(kinds) or [[]]:
        has_master = bool(places) and masters[places[0]] is not None
        lists = [weights, m, v, *([masters] if has_master else []), gradients]
        updated = (_with_master if has_master else _update)(
            *(apply, rate, t), *(grouping.picked(each, places) for each in lists),
            beta_1=beta_1, beta_2=beta_2, epsilon=epsilon,
            rate_factors=grouping.picked(factors, places), weight_decays=grouping.picked(decays, places), name=name,
        )  # fmt: skip
        for each, new in zip(found, updated, strict=False):
            for place, tensor in zip(places, new, strict=True):
                each[place] = tensor
    return (_update if master is None else _with_master).output_type(*found)


@_update.reference
def _(
    apply: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    w: list[tf.Tensor],
    m: list[tf.Tensor],
    v: list[tf.Tensor],
    g: list[tf.Tensor],
    **attributes: Any,
) -> list[list[tf.Tensor]]:
    return _plain(apply, rate, t, [w, m, v], g, **attributes)


@_with_master.reference
def _(
    apply: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    w: list[tf.Tensor],
    m: list[tf.Tensor],
    v: list[tf.Tensor],
    master: list[tf.Tensor],
    g: list[tf.Tensor],
    **attributes: Any,
) -> list[list[tf.Tensor]]:
    return _plain(apply, rate, t, [w, m, v, master], g, **attributes)


def _plain(
    apply: tf.Tensor,
    rate: tf.Tensor,
    t: tf.Tensor,
    kept: list[list[tf.Tensor]],
    gradients: list[tf.Tensor],
    *,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    rate_factors: Sequence[float],
    weight_decays: Sequence[float],
) -> list[list[tf.Tensor]]:
    import tensorflow as tf

    t = tf.stop_gradient(t)  # a number of steps
    rest_1, rest_2 = _one_minus_power(beta_1, t), _one_minus_power(beta_2, t)

    def update(old: Sequence[tf.Tensor], g: tf.Tensor, factor: float, decay: float) -> list[tf.Tensor]:
        w, m, v, *masters = old
        g = tf.cast(g, tf.float32)
        new_m = beta_1 * m + (1 - beta_1) * g
        new_v = beta_2 * v + (1 - beta_2) * tf.square(g)
        direction = new_m / rest_1 / (tf.sqrt(new_v / rest_2) + epsilon)
        before = tf.cast(w, tf.float32)
        if masters:
            before = tf.where(tf.cast(masters[0], w.dtype) == w, masters[0], before)
        moved = before - rate * factor * (direction + decay * before)
        new = [tf.cast(moved, w.dtype), new_m, new_v, *([moved] if masters else [])]
        return [tf.where(apply, after, kept) for after, kept in zip(new, old, strict=True)]

    each = zip(zip(*kept, strict=True), gradients, rate_factors, weight_decays, strict=True)
    return [list(tensors) for tensors in zip(*(update(*one) for one in each), strict=True)]


def _one_minus_power(beta: float, t: tf.Tensor) -> tf.Tensor:
    """``1 - beta^t`` without the cancellation that costs float32 four digits at small ``t``."""
    import tensorflow as tf

    return -tf.math.expm1(t * math.log(beta)) if beta else tf.ones_like(t)


_update.differentiate_reference()
_with_master.differentiate_reference()
