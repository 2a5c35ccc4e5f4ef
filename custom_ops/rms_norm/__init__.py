"""Root mean square layer normalisation (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467).

.. math:: y = x \\cdot r \\cdot \\gamma, \\qquad r = 1 / \\sqrt{\\mathrm{mean}(x^2) + \\epsilon}

with the mean over the last axis. Two ops with kernels of their own: ``TfToolkit>RmsNorm`` returns y and r,
``TfToolkit>RmsNormGrad`` the gradients; both compute in float32 whatever they load and store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("rms_norm")
_forward = _library.op("RmsNorm")
_backward = _library.op("RmsNormGrad")


def rms_norm(x: Any, gamma: Any, epsilon: float = 1e-6, *, name: str | None = None) -> tf.Tensor:
    """Divides x by the root mean square of its last axis and multiplies it by gamma.

    Args:
      x: [..., d]; float32, bfloat16 or float16.
      gamma: [d], of x's dtype.
      epsilon: added to the mean square; not negative.

    Returns:
      A tensor of x's shape and dtype. Differentiable to any order; NaN in a row makes that row NaN.

    Raises:
      tf.errors.InvalidArgumentError: x has no last axis, or gamma's length is not d.
      ValueError: epsilon is negative or NaN.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    return _forward(x, gamma, epsilon=epsilon, name=name).y


@_forward.reference
def _(x: tf.Tensor, gamma: tf.Tensor, *, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    wide = tf.cast(x, tf.float32)
    inv_rms = tf.math.rsqrt(tf.reduce_mean(tf.square(wide), axis=-1) + epsilon)
    y = wide * inv_rms[..., tf.newaxis] * tf.cast(gamma, tf.float32)
    return tf.cast(y, x.dtype), inv_rms


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
