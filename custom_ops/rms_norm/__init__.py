"""Root mean square layer normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

.. math:: y = s \\cdot r \\cdot \\gamma + \\mathrm{bias}, \\qquad s = x + \\mathrm{residual}, \\quad
   r = 1 / \\sqrt{\\mathrm{mean}(s^2) + \\epsilon}

with the mean over the last axis; bias and residual may be left out. ``TfToolkit>RmsNorm`` has neither, has kernels for
CPU and CUDA and returns y and r. On the CPU alone, ``TfToolkit>BiasRmsNorm`` has a bias, and ``TfToolkit>AddRmsNorm`` a
residual, too, and returns s as well. ``TfToolkit>RmsNormGrad`` and ``TfToolkit>AddRmsNormGrad`` are their gradients.
All compute in float32 whatever they load and store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("rms_norm")
_forward = _library.op("RmsNorm")
_backward = _library.op("RmsNormGrad")
_with_bias = _library.op("BiasRmsNorm")
_with_residual = _library.op("AddRmsNorm")
_add_backward = _library.op("AddRmsNormGrad")


def rms_norm(
    x: Any,
    gamma: Any,
    epsilon: float = 1e-6,
    *,
    bias: Any = None,
    residual: Any = None,
    name: str | None = None,
) -> Any:
    """Divides x, or x + residual, by the root mean square of its last axis and multiplies it by gamma.

    Args:
      x: [..., d]; float32, bfloat16 or float16.
      gamma: [d], of x's dtype.
      epsilon: added to the mean square; not negative.
      bias: [d], of x's dtype, added to the result; None for nothing.
      residual: of x's shape and dtype, added to x first; None for nothing.

    Returns:
      A tensor of x's shape and dtype; with a residual a pair of it and x + residual, rounded to x's dtype, which is
      what the next residual connection takes. Differentiable to any order; NaN in a row makes that row NaN.

    Raises:
      tf.errors.InvalidArgumentError: x has no last axis, residual is not of x's shape, or gamma or bias not of
        length d.
      ValueError: epsilon is negative or NaN.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if residual is not None:
        y, total, _ = _with_residual(x, residual, gamma, bias, epsilon=epsilon, name=name)
        return y, total
    if bias is not None:
        return _with_bias(x, gamma, bias, epsilon=epsilon, name=name).y
    return _forward(x, gamma, epsilon=epsilon, name=name).y


@_forward.reference
def _(x: tf.Tensor, gamma: tf.Tensor, *, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    return _plain(x, gamma, None, epsilon)


@_forward.gradient
def _(op: Any, dy: tf.Tensor, d_inv_rms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, gamma = op.inputs
    _, inv_rms = op.outputs
    return _backward(dy, d_inv_rms, x, gamma, inv_rms)


@_backward.reference
def _(
    dy: tf.Tensor, d_inv_rms: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, inv_rms: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    dtype = x.dtype
    dy, x, gamma = (tf.cast(tensor, tf.float32) for tensor in (dy, x, gamma))
    d = tf.cast(tf.shape(x)[-1], tf.float32)
    inv = inv_rms[..., tf.newaxis]
    dot = tf.reduce_sum(dy * gamma * x, axis=-1, keepdims=True) + d_inv_rms[..., tf.newaxis]
    dx = inv * (dy * gamma) - x * (inv**3 * (dot / d))
    dgamma = tf.reduce_sum(tf.reshape(dy * x * inv, [-1, tf.shape(x)[-1]]), axis=0)
    return tf.cast(dx, dtype), tf.cast(dgamma, dtype)


_backward.differentiate_reference()


# With bias and residual


@_with_bias.reference
def _(x: tf.Tensor, gamma: tf.Tensor, bias: tf.Tensor, *, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    return _plain(x, gamma, bias, epsilon)


@_with_residual.reference
def _(
    x: tf.Tensor, residual: tf.Tensor, gamma: tf.Tensor, bias: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    total = tf.add(x, residual)
    y, inv_rms = _plain(total, gamma, bias, epsilon)
    return y, total, inv_rms


def _plain(x: tf.Tensor, gamma: tf.Tensor, bias: tf.Tensor | None, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    wide = tf.cast(x, tf.float32)
    inv_rms = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), axis=-1) + epsilon)
    y = wide * inv_rms[..., tf.newaxis] * tf.cast(gamma, tf.float32)
    if bias is not None:
        y += tf.cast(bias, tf.float32)
    return tf.cast(y, x.dtype), inv_rms


@_with_bias.gradient
def _(op: Any, dy: Any, d_inv_rms: Any) -> tuple[Any, ...]:
    x, gamma, _ = op.inputs
    _, inv_rms = op.outputs
    return tuple(_add_backward(dy, d_inv_rms, x, gamma, inv_rms))


@_with_residual.gradient
def _(op: Any, dy: Any, d_sum: Any, d_inv_rms: Any) -> tuple[Any, ...]:
    _, _, gamma, _ = op.inputs
    _, total, inv_rms = op.outputs
    dx, dgamma, dbias = _add_backward(dy, d_inv_rms, total, gamma, inv_rms, d_sum)
    return dx, dx, dgamma, dbias if op.get_attr("has_bias") else None


@_add_backward.reference
def _(
    dy: tf.Tensor, d_inv_rms: tf.Tensor, x: tf.Tensor, gamma: tf.Tensor, inv_rms: tf.Tensor, d_sum: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    dtype, length = x.dtype, tf.shape(x)[-1]
    dy, x, gamma = (tf.cast(tensor, tf.float32) for tensor in (dy, x, gamma))
    d_inv, inv = d_inv_rms[..., tf.newaxis], inv_rms[..., tf.newaxis]
    g, h = dy * gamma, x * inv
    dx = inv * g - h * (inv * tf.reduce_sum(g * h, axis=-1, keepdims=True) + inv**2 * d_inv) / tf.cast(
        length, tf.float32
    )
    if d_sum is not None:
        dx += tf.cast(d_sum, tf.float32)
    dgamma, dbias = (tf.reduce_sum(tf.reshape(tensor, [-1, length]), axis=0) for tensor in (dy * x * inv, dy))
    return tf.cast(dx, dtype), tf.cast(dgamma, dtype), tf.cast(dbias, dtype)


_add_backward.differentiate_reference()
