"""RandAugment (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719) of one picture: changes one after the other.

``TfToolkit>RandAugment`` makes all of them in one call, each in one pass over the picture. What a change does, and its
range, is said at :func:`tftoolkit.pipelines.image.rand_augment`, which draws the changes. The reference is
``custom_ops/pixels.py``; the kernel agrees with it in every value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("rand_augment")
_op = _library.op("RandAugment")


def rand_augment(image: Any, numbers: Any, negative: Any, magnitude: int, *, name: str | None = None) -> tf.Tensor:
    """Makes the given changes of RandAugment, in this order.

    Args:
      image: uint8 [height, width, channels], 1 or 3 channels.
      numbers: int32 [layers]; which changes, 0 … 13 in the order of ``pixels.CHANGES``.
      negative: bool [layers]; the sign of each.
      magnitude: 0 … 30.

    Returns:
      A tensor of the image's shape and dtype. Without gradient.

    Raises:
      tf.errors.InvalidArgumentError: another shape, number of channels, change or magnitude than these.
    """
    return _op(image, numbers, negative, magnitude=magnitude, name=name)


@_op.reference
def _(image: tf.Tensor, numbers: tf.Tensor, negative: tf.Tensor, *, magnitude: int) -> tf.Tensor:
    from tftoolkit.custom_ops import pixels

    return pixels.in_tensorflow(image, numbers, negative, magnitude)
