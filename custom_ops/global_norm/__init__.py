"""The norm by which gradients are clipped (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063).

``TfToolkit>GlobalNorm`` takes all tensors of one dtype together; for lists of several dtypes there is
``TfToolkit>SumOfSquares``, the same before the root.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import grouping, library, ops

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("global_norm")
_norm = _library.op("GlobalNorm")
_sum = _library.op("SumOfSquares")


def global_norm(tensors: Sequence[Any], *, name: str | None = None) -> tf.Tensor:
    """The Euclidean norm of all elements of the tensors together.

    Args:
      tensors: one or more; each float32, bfloat16 or float16, any shapes, which may be empty. Squares and sums are in
        float32 and float64 whatever they are; each dtype in a list costs a call.

    Returns:
      A float32 scalar: infinity where the sum of the squares overflows float32, NaN if an element is. Differentiable to
      any order; the gradient at a norm of 0 is NaN.

    Raises:
      TypeError: ``tensors`` is no list, or empty; or a tensor of another dtype.
    """
    groups = grouping.by_key(map(grouping.dtype_name, tensors)) if isinstance(tensors, list | tuple) else []
    if len(groups) < 2:
        return _norm(tensors, name=name)
    # Not the norm of the norms: that has no gradient where one of them is 0.
    sums = [_sum(grouping.picked(tensors, places)) for places in groups]
    if "jax" in sys.modules and ops.is_jax(sums):
        import jax.numpy as jnp

        return jnp.sqrt(sum(sums))
    import tensorflow as tf

    return tf.sqrt(tf.add_n(sums), name=name)


@_norm.reference
def _(tensors: list[tf.Tensor]) -> tf.Tensor:
    import tensorflow as tf

    return tf.sqrt(_plain_sum(tensors))


@_sum.reference
def _(tensors: list[tf.Tensor]) -> tf.Tensor:
    return _plain_sum(tensors)


def _plain_sum(tensors: list[tf.Tensor]) -> tf.Tensor:
    import tensorflow as tf

    return tf.add_n([tf.reduce_sum(tf.square(tf.cast(tensor, tf.float32))) for tensor in tensors])


@_norm.gradient
def _(op: Any, d_norm: tf.Tensor) -> list[tf.Tensor]:
    (norm,) = op.outputs
    return _scaled(op.inputs, d_norm / norm)


@_sum.gradient
def _(op: Any, d_sum: tf.Tensor) -> list[tf.Tensor]:
    return _scaled(op.inputs, 2 * d_sum)


def _scaled(tensors: Sequence[Any], scale: Any) -> list[Any]:
    return [_cast(_cast(tensor, "float32") * scale, grouping.dtype_name(tensor)) for tensor in tensors]


def _cast(value: Any, dtype: str) -> Any:
    """In TensorFlow and in JAX, whose gradients come through here, too."""
    if grouping.dtype_name(value) == dtype:
        return value
    if hasattr(value, "astype"):
        return value.astype(dtype)
    import tensorflow as tf

    return tf.cast(value, dtype)
