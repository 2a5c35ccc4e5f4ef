"""The norm by which gradients are clipped (Pascanu et al. 2013, https://arxiv.org/abs/1211.5063).

One op, ``TfToolkit>GlobalNorm``, for all tensors together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_norm = library.load_builtin("global_norm").op("GlobalNorm")


def global_norm(tensors: Sequence[Any], *, name: str | None = None) -> tf.Tensor:
    """The Euclidean norm of all elements of the tensors together.

    Args:
      tensors: one or more; float32, any shapes, which may be empty.

    Returns:
      A float32 scalar: infinity where the sum of the squares overflows float32, NaN if an element is. Differentiable to
      any order; the gradient at a norm of 0 is NaN.

    Raises:
      TypeError: ``tensors`` is no list, or empty.
    """
    return _norm(tensors, name=name)


@_norm.reference
def _(tensors: list[tf.Tensor]) -> tf.Tensor:
    import tensorflow as tf

    return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(tensor)) for tensor in tensors]))


@_norm.gradient
def _(op: Any, d_norm: tf.Tensor) -> list[tf.Tensor]:
    (norm,) = op.outputs
    return [tensor * (d_norm / norm) for tensor in op.inputs]
