"""Layer normalisation (Ba, Kiros & Hinton 2016, https://arxiv.org/abs/1607.06450), with or without a residual.

.. math:: y = (s - m) \\cdot r \\cdot \\gamma + \\beta, \\qquad s = x + \\mathrm{residual}, \\quad
   m = \\mathrm{mean}(s), \\quad r = 1 / \\sqrt{\\mathrm{mean}((s - m)^2) + \\epsilon}

with the means over the last axis. ``TfToolkit>LayerNorm`` returns y, m and r, ``TfToolkit>AddLayerNorm`` s as well, and
``TfToolkit>LayerNormGrad`` the gradients of both; all compute in float32 whatever they load and store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("layer_norm")
_forward = _library.op("LayerNorm")
_with_residual = _library.op("AddLayerNorm")
_backward = _library.op("LayerNormGrad")


def layer_norm(
    x: Any,
    gamma: Any,
    beta: Any = None,
    residual: Any = None,
    *,
    epsilon: float = 1e-5,
    name: str | None = None,
) -> Any:
    """Normalises the last axis of x, or of x + residual, to mean 0 and variance 1, scales it and moves it.

    Args:
      x: [..., d]; float32, bfloat16 or float16.
      gamma: [d], of x's dtype: the factor.
      beta: [d], of x's dtype: what is added; None for nothing.
      residual: of x's shape and dtype, added to x first; None for nothing.
      epsilon: added to the variance; not negative.

    Returns:
      A tensor of x's shape and dtype; with a residual a pair of it and x + residual, rounded to x's dtype, which is
      what the next residual connection takes. Differentiable to any order; NaN in a row makes that row NaN. A mean that
      is large against the deviation costs no digits.

    Raises:
      tf.errors.InvalidArgumentError: x has no last axis, residual is not of x's shape, or gamma or beta not of
        length d.
      ValueError: epsilon is negative or NaN.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    if residual is None:
        return _forward(x, gamma, beta, epsilon=epsilon, name=name).y
    y, total, _, _ = _with_residual(x, residual, gamma, beta, epsilon=epsilon, name=name)
    return y, total


@_forward.reference
def _(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    wide = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(wide, axis=-1, keepdims=True)
    centred = wide - mean
    inv_std = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + epsilon)
    y = centred * inv_std * tf.cast(gamma, tf.float32)
    if beta is not None:
        y += tf.cast(beta, tf.float32)
    return tf.cast(y, x.dtype), mean[..., 0], inv_std[..., 0]


@_forward.gradient
def _(op: Any, dy: Any, d_mean: Any, d_inv_std: Any) -> tuple[Any, ...]:
    x, gamma, _ = op.inputs
    _, mean, inv_std = op.outputs
    dx, dgamma, dbeta = _backward(dy, d_mean, d_inv_std, x, gamma, mean, inv_std)
    return dx, dgamma, dbeta if op.get_attr("has_beta") else None


@_with_residual.reference
def _(
    x: tf.Tensor, residual: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor | None, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    total = tf.add(x, residual)
    y, mean, inv_std = _forward.run_reference(total, gamma, beta, epsilon=epsilon)
    return y, total, mean, inv_std


@_with_residual.gradient
def _(op: Any, dy: Any, d_sum: Any, d_mean: Any, d_inv_std: Any) -> tuple[Any, ...]:
    _, _, gamma, _ = op.inputs
    _, total, mean, inv_std = op.outputs
    dx, dgamma, dbeta = _backward(dy, d_mean, d_inv_std, total, gamma, mean, inv_std, d_sum)
    return dx, dx, dgamma, dbeta if op.get_attr("has_beta") else None


@_backward.reference
def _(
    dy: tf.Tensor,
    d_mean: tf.Tensor,
    d_inv_std: tf.Tensor,
    x: tf.Tensor,
    gamma: tf.Tensor,
    mean: tf.Tensor,
    inv_std: tf.Tensor,
    d_sum: tf.Tensor | None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    dtype, length = x.dtype, tf.shape(x)[-1]
    dy, x, gamma = (tf.cast(tensor, tf.float32) for tensor in (dy, x, gamma))
    d_mean, d_inv, mean, inv = (tensor[..., tf.newaxis] for tensor in (d_mean, d_inv_std, mean, inv_std))
    d = tf.cast(length, tf.float32)
    centred = x - tf.stop_gradient(mean)  # the next line makes up for any other
    centred -= tf.reduce_mean(centred, axis=-1, keepdims=True)  # what rounding the mean to float32 left
    g, h = dy * gamma, centred * inv
    sums = tf.reduce_sum(g, axis=-1, keepdims=True), tf.reduce_sum(g * h, axis=-1, keepdims=True)
    dx = inv * (g - (sums[0] + h * sums[1]) / d) + d_mean / d - h * inv**2 * d_inv / d
    if d_sum is not None:
        dx += tf.cast(d_sum, tf.float32)
    dgamma, dbeta = (tf.reduce_sum(tf.reshape(tensor, [-1, length]), axis=0) for tensor in (dy * h, dy))
    return tf.cast(dx, dtype), tf.cast(dgamma, dtype), tf.cast(dbeta, dtype)


_backward.differentiate_reference()
