"""Deformable convolution, version 2 (Zhu et al. 2018, https://arxiv.org/abs/1811.11168; version 1: Dai et al. 2017,
https://arxiv.org/abs/1703.06211).

.. math:: y(p) = b + \\sum_k w_k \\, m_k(p) \\, x(p + p_k + \\Delta_k(p))

with x interpolated between four pixels, 0 outside of the picture. The meaning is that of
``torchvision.ops.deform_conv2d``, channels last. ``TfToolkit>DeformConv2d`` and ``TfToolkit>DeformConv2dGrad`` have
kernels for CPU and CUDA; both compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tftoolkit.custom_ops.engine import library

_library = library.load_builtin("deform_conv2d")
_forward = _library.op("DeformConv2d")
_backward = _library.op("DeformConv2dGrad")
_STEPS = ("stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x")


def deform_conv2d(
    x: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    *,
    mask: Any = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    name: str | None = None,
) -> Any:
    """A convolution whose kernel's points are moved by offsets, at each pixel by others, and weighed by a mask.

    Args:
      x: [batch, height, width, channels]; float32, bfloat16 or float16, as are all others.
      offset: [batch, out_height, out_width, 2 * offset_groups * points]: for each group of channels and each point of
        the kernel (row by row) by how many pixels it is moved down and to the right.
      weight: [kernel_height, kernel_width, channels / groups, out_channels].
      bias: [out_channels], or None.
      mask: [batch, out_height, out_width, offset_groups * points], by which points are multiplied; None for 1, which is
        version 1.
      stride: pixels of x from one pixel of y to the next, (down, right) or one number for both.
      padding: by how many pixels y begins before x, and ends behind it.
      dilation: pixels from one point of the kernel to the next.

    Returns:
      [batch, out_height, out_width, out_channels], of x's dtype. Differentiable to any order by all inputs, with the
      same bits every time. A point beyond the picture counts as 0, so do infinite offsets; an offset of NaN makes its
      pixel of y NaN. On a GPU, where gradients by columns are not finite, all of the gradient by x is NaN.

    Raises:
      tf.errors.InvalidArgumentError: shapes that do not fit, also those of offset and y.
      ValueError: stride or dilation is not positive, or padding negative.
    """
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    steps: dict[str, int] = {}
    for what, value in pairs.items():
        down, right = (value, value) if isinstance(value, int) else value
        if min(down, right) < (what != "padding"):
            raise ValueError(f"{what} must be {'positive' if what != 'padding' else 'at least 0'}, got {value}")
        steps |= {f"{what}_y": down, f"{what}_x": right}
    return _forward(x, offset, weight, bias, mask, **steps, name=name)


@_forward.reference
def _(x: Any, offset: Any, weight: Any, bias: Any, mask: Any, **steps: int) -> Any:
    from tftoolkit.custom_ops.deform_conv2d import plain

    return plain.forward(x, offset, weight, bias, mask, **steps)


@_forward.gradient
def _(op: Any, dy: Any) -> Any:
    x, offset, weight, _, mask = op.inputs
    masked = op.get_attr("has_mask")
    found = _backward(
        *(dy, x, offset, weight, mask if masked else offset),
        **{name: op.get_attr(name) for name in _STEPS},
        masked=masked,
        has_dmask=masked,
    )
    return found.dx, found.doffset, found.dweight, found.dbias if op.get_attr("has_bias") else None, found.dmask


@_backward.reference
def _(dy: Any, x: Any, offset: Any, weight: Any, mask: Any, *, masked: bool, has_dmask: bool, **steps: int) -> Any:
    import tensorflow as tf

    from tftoolkit.custom_ops.deform_conv2d import plain

    found = plain.gradients(dy, x, offset, weight, mask if masked else None, **steps)
    dmask = found[4] if masked else tf.zeros_like(mask)
    return *found[:4], dmask if has_dmask else None


_backward.differentiate_reference()
