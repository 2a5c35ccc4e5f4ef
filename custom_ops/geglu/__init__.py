"""GEGLU, a gated linear unit (Shazeer 2020, https://arxiv.org/abs/2002.05202; GELU: Hendrycks & Gimpel 2016).

.. math:: y = \\mathrm{gelu}(\\mathrm{gate}) \\cdot \\mathrm{up}, \\qquad \\mathrm{gelu}(x) = x \\cdot \\Phi(x)

with the standard normal distribution, or its approximation by tanh (https://arxiv.org/abs/1606.08415). Two ops with
kernels of their own, ``TfToolkit>Geglu`` and ``TfToolkit>GegluGrad``; both compute in float32 whatever they load and
store, and keep nothing but their inputs for the gradient.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("geglu")
_forward = _library.op("Geglu")
_backward = _library.op("GegluGrad")


def geglu(gate: Any, up: Any, *, approximate: bool = False, name: str | None = None) -> Any:
    """Multiplies ``up`` by gelu of ``gate``, element by element.

    Args:
      gate, up: of one shape, any, and one dtype; float32, bfloat16 or float16.
      approximate: gelu by tanh, as in GPT-2, which differs by up to 5e-4; otherwise the exact one.

    Returns:
      A tensor of their shape and dtype. Differentiable to any order.

    Raises:
      tf.errors.InvalidArgumentError: the shapes differ.
    """
    return _forward(gate, up, approximate=approximate, name=name)


@_forward.reference
def _(gate: tf.Tensor, up: tf.Tensor, *, approximate: bool) -> tf.Tensor:
    import tensorflow as tf

    below, _ = _distribution(tf.cast(gate, tf.float32), approximate)
    return tf.cast(tf.cast(gate, tf.float32) * below * tf.cast(up, tf.float32), gate.dtype)


@_forward.gradient
def _(op: Any, dy: Any) -> Any:
    return tuple(_backward(dy, *op.inputs, approximate=op.get_attr("approximate")))


@_backward.reference
def _(dy: tf.Tensor, gate: tf.Tensor, up: tf.Tensor, *, approximate: bool) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    dtype = gate.dtype
    dy, gate, up = (tf.cast(tensor, tf.float32) for tensor in (dy, gate, up))
    below, density = _distribution(gate, approximate)
    return tf.cast(dy * up * (below + gate * density), dtype), tf.cast(dy * gate * below, dtype)


def _distribution(x: tf.Tensor, approximate: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """The normal distribution, or what stands for it, and its derivative."""
    import tensorflow as tf

    if approximate:
        scale = 2 * math.sqrt(2 / math.pi)
        below = tf.sigmoid(scale * (x + 0.044715 * x**3))
        return below, below * (1 - below) * scale * (1 + 3 * 0.044715 * x**2)
    return (1 + tf.math.erf(x / math.sqrt(2))) / 2, tf.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


_backward.differentiate_reference()
