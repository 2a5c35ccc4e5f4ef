"""SwiGLU, a gated linear unit (Shazeer 2020, https://arxiv.org/abs/2002.05202).

.. math:: y = \\mathrm{silu}(\\mathrm{gate}) \\cdot \\mathrm{up}, \\qquad \\mathrm{silu}(x) = x / (1 + e^{-x})

Two ops with kernels of their own, ``TfToolkit>Swiglu`` and ``TfToolkit>SwigluGrad``; both compute in float32 whatever
they load and store, and keep nothing but their inputs for the gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("swiglu")
_forward = _library.op("Swiglu")
_backward = _library.op("SwigluGrad")


def swiglu(gate: Any, up: Any, *, name: str | None = None) -> Any:
    """Multiplies ``up`` by silu of ``gate``, element by element.

    Args:
      gate, up: of one shape, any, and one dtype; float32, bfloat16 or float16.

    Returns:
      A tensor of their shape and dtype. Differentiable to any order.

    Raises:
      tf.errors.InvalidArgumentError: the shapes differ.
    """
    return _forward(gate, up, name=name)


@_forward.reference
def _(gate: tf.Tensor, up: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    wide = tf.cast(gate, tf.float32)
    return tf.cast(wide * tf.sigmoid(wide) * tf.cast(up, tf.float32), gate.dtype)


@_forward.gradient
def _(op: Any, dy: Any) -> Any:
    return tuple(_backward(dy, *op.inputs))


@_backward.reference
def _(dy: tf.Tensor, gate: tf.Tensor, up: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    dtype = gate.dtype
    dy, gate, up = (tf.cast(tensor, tf.float32) for tensor in (dy, gate, up))
    sigmoid = tf.sigmoid(gate)
    slope = sigmoid * (1 + gate * (1 - sigmoid))
    return tf.cast(dy * up * slope, dtype), tf.cast(dy * gate * sigmoid, dtype)


_backward.differentiate_reference()
