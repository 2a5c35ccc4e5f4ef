"""RoIAlign (He et al. 2017, Mask R-CNN, https://arxiv.org/abs/1703.06870): features under boxes, in bins of equal size.

Each bin is the mean of samples that lie evenly in it, each interpolated between four pixels: of bin k with samples S,

.. math:: y_k = \\frac{1}{|S_k|} \\sum_{s \\in S_k} \\sum_p
   \\max(0, 1 - |s_x - p_x|)\\, \\max(0, 1 - |s_y - p_y|)\\, x_p

The meaning is that of ``torchvision.ops.roi_align``, channels last. ``TfToolkit>RoiAlign`` and
``TfToolkit>RoiAlignGrad``, the gradient by the features, have kernels for CPU and CUDA; both compute in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tftoolkit.custom_ops.engine import library

_library = library.load_builtin("roi_align")
_forward = _library.op("RoiAlign")
_backward = _library.op("RoiAlignGrad")
_OPTIONS = ("spatial_scale", "sampling_ratio", "aligned")


def roi_align(
    features: Any,
    boxes: Any,
    box_indices: Any,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = True,
    name: str | None = None,
) -> Any:
    """Features under each box, in ``output_size`` bins.

    A sample further than one pixel outside of the picture counts as 0; one on the border takes the border's pixel.

    Args:
      features: [batch, height, width, channels]; float32, bfloat16 or float16.
      boxes: float32 [n, 4], x1, y1, x2, y2. Multiplied by spatial_scale they are pixels of the features; with
        ``aligned`` pixel i has its middle at i + 0.5, without at i, as in Detectron.
      box_indices: [n], int32 or int64: the picture of each box, 0 … batch - 1.
      output_size: bins, (height, width) or one number for both.
      spatial_scale: what the features' size is of that of the picture in which boxes are measured.
      sampling_ratio: samples of a bin along each axis, at most 1024; 0 or less: as many as it has pixels, rounded up.
      aligned: without it a box is at least one pixel wide and high.

    Returns:
      [n, height, width of output_size, channels], of features' dtype. Of a box with x2 < x1 or y2 < y1 the bins are 0
      with ``aligned`` and no sampling_ratio (there is no sample), mirrored with a sampling_ratio; of one with NaN or
      infinity they are NaN, and the features get no gradient from it. Differentiable to any order by the features, with
      the same bits every time; not by the boxes. On a GPU a box whose index is no picture is NaN and gives no gradient.

    Raises:
      tf.errors.InvalidArgumentError: an index is no picture (on the CPU), or shapes that do not fit.
      ValueError: output_size or sampling_ratio is out of range.
    """
    height, width = (output_size, output_size) if isinstance(output_size, int) else output_size
    if min(height, width) < 1:
        raise ValueError(f"output_size must be positive, got {output_size}")
    if sampling_ratio > 1024:
        raise ValueError(f"sampling_ratio may be 1024, got {sampling_ratio}")
    options = {"spatial_scale": spatial_scale, "sampling_ratio": sampling_ratio, "aligned": aligned}
    sizes = {"output_height": height, "output_width": width}
    return _forward(features, boxes, box_indices, **sizes, **options, name=name)


@_forward.reference
def _(features: Any, boxes: Any, box_indices: Any, **options: Any) -> Any:
    from tftoolkit.custom_ops.roi_align import plain

    return plain.forward(features, boxes, box_indices, **options)


@_forward.gradient
def _(op: Any, dy: Any) -> Any:
    return _backward(dy, *op.inputs, **_options(op)), None, None


@_backward.reference
def _(dy: Any, features: Any, boxes: Any, box_indices: Any, **options: Any) -> Any:
    from tftoolkit.custom_ops.roi_align import plain

    return plain.backward(dy, features, boxes, box_indices, **options)


@_backward.gradient
def _(op: Any, d_dfeatures: Any) -> Any:
    # Linear in dy: what the gradient spreads, RoIAlign collects. Without known sizes there are no attributes for it.
    import tensorflow as tf

    from tftoolkit.custom_ops.roi_align import plain

    dy, _, boxes, box_indices = op.inputs
    known = dy.shape.rank is not None and None not in dy.shape[1:3]
    height, width = dy.shape[1:3] if known else tf.unstack(tf.shape(dy)[1:3])
    collect = _forward if known else plain.forward
    d_dy = collect(d_dfeatures, boxes, box_indices, output_height=height, output_width=width, **_options(op))
    return d_dy, None, None, None


def _options(op: Any) -> dict[str, Any]:
    return {name: op.get_attr(name) for name in _OPTIONS}
