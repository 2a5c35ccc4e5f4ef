"""Dropout (Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html) and the sum with a residual.

.. math:: y = \\mathrm{residual} + m \\cdot x / (1 - \\mathrm{rate})

where m is 0 with probability rate and else 1. The mask is a pure function of a key and an element's index, by a
counter-based generator, Philox4x32-10 (Salmon et al. 2011), so it is computed again in the gradient and never stored.
Two ops with kernels of their own, ``TfToolkit>DropoutAdd`` and ``TfToolkit>DropoutAddGrad``, which is its own gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("dropout_add")
_forward = _library.op("DropoutAdd")
_backward = _library.op("DropoutAddGrad")


def dropout_add(x: Any, residual: Any, key: Any, *, rate: float, name: str | None = None) -> Any:
    """Sets elements of x to 0 with probability ``rate``, divides the others by 1 - rate, and adds the residual.

    Args:
      x: any shape; float32, bfloat16 or float16.
      residual: of x's shape and dtype.
      key: [2], int32 or int64: two numbers, such as a seed and the step. The same numbers give the same mask, in both
        dtypes; other numbers another, independent one. Use a key for one layer in one step.
      rate: the probability, at least 0 and less than 1.

    Returns:
      A tensor of x's shape and dtype. Differentiable to any order by x and residual. Whether element i of x laid flat
      is kept depends on key, rate and i alone: not on the shape, threads, eager mode, XLA or JAX.

    Raises:
      tf.errors.InvalidArgumentError: residual is not of x's shape, or key not of shape [2].
      ValueError: rate is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be at least 0 and less than 1, got {rate}")
    return _forward(x, residual, key, rate=rate, name=name)


@_forward.reference
def _(x: tf.Tensor, residual: tf.Tensor, key: tf.Tensor, *, rate: float) -> tf.Tensor:
    import tensorflow as tf

    return tf.cast(tf.cast(residual, tf.float32) + _dropped(x, key, rate), x.dtype)


@_forward.gradient
def _(op: Any, dy: Any) -> tuple[Any, Any, None]:
    return _backward(dy, op.inputs[2], rate=float(op.get_attr("rate"))), dy, None


@_backward.reference
def _(dy: tf.Tensor, key: tf.Tensor, *, rate: float) -> tf.Tensor:
    import tensorflow as tf

    return tf.cast(_dropped(dy, key, rate), dy.dtype)


@_backward.gradient
def _(op: Any, ddx: Any) -> tuple[Any, None]:
    return _backward(ddx, op.inputs[1], rate=float(op.get_attr("rate"))), None


def _dropped(x: tf.Tensor, key: tf.Tensor, rate: float) -> tf.Tensor:
    import tensorflow as tf

    size = tf.size(x, out_type=tf.int64)
    threshold = tf.constant(min(round(rate * 2**32), 2**32 - 1), tf.uint64)
    keep = tf.reshape(_philox(key, (size + 3) // 4)[:size] >= threshold, tf.shape(x))
    wide = tf.cast(x, tf.float32)
    return tf.where(keep, wide / (1 - rate), tf.zeros_like(wide))


def _philox(key: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The words of Philox4x32-10 at counters 0 … count - 1, as uint64 [4 * count]."""
    import tensorflow as tf

    shift, lower = tf.constant(32, tf.uint64), tf.constant(2**32 - 1, tf.uint64)
    right, xor, both = tf.bitwise.right_shift, tf.bitwise.bitwise_xor, tf.bitwise.bitwise_and
    numbers = tf.bitcast(tf.cast(key, tf.int64), tf.uint64)
    keys, upper = both(numbers, lower), right(numbers, shift)
    counters = tf.cast(tf.range(count), tf.uint64)
    zero = tf.zeros_like(counters)
    a, b, c, d = both(counters, lower), right(counters, shift), zero + upper[0], zero + upper[1]
    key_0, key_1 = keys[0], keys[1]
    for _ in range(10):
        p, q = a * tf.constant(0xD2511F53, tf.uint64), c * tf.constant(0xCD9E8D57, tf.uint64)
        a, b = xor(xor(right(q, shift), b), key_0), both(q, lower)
        c, d = xor(xor(right(p, shift), d), key_1), both(p, lower)
        key_0 = both(key_0 + tf.constant(0x9E3779B9, tf.uint64), lower)
        key_1 = both(key_1 + tf.constant(0xBB67AE85, tf.uint64), lower)
    return tf.reshape(tf.stack([a, b, c, d], axis=1), [-1])
