"""Images sampled at the points of a grid (Jaderberg et al. 2015, https://arxiv.org/abs/1506.02025).

.. math:: y_p = \\sum_i w_i(g_p) \\, x_i

over the pixels i of an image x, for each point p of a grid g. The weights w are 1 for the nearest pixel, linear in each
coordinate (bilinear), or the cubic convolution of Keys (1981) with a = -0.75 (bicubic). Four ops with kernels of their
own: ``TfToolkit>GridSample`` and its gradient, ``GridSampleGrad``, and ``GridSample3d`` and ``GridSample3dGrad`` for
volumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

    from tftoolkit.custom_ops.engine.ops import Op

_MODES = ("nearest", "bilinear", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")
_PIXELS = 2  # of the ops' attribute ``space``, after half pixels and corners

_library = library.load_builtin("grid_sample")
_flat, _flat_grad = _library.op("GridSample"), _library.op("GridSampleGrad")
_volume, _volume_grad = _library.op("GridSample3d"), _library.op("GridSample3dGrad")


def grid_sample(
    images: Any,
    grid: Any,
    *,
    mode: str = "bilinear",
    padding: str = "zeros",
    align_corners: bool = False,
    name: str | None = None,
) -> Any:
    """Samples images, or volumes, at the points of a grid. As PyTorch's, with channels last.

    Args:
      images: [batch, height, width, channels] or [batch, depth, height, width, channels]; float32, bfloat16 or float16.
      grid: [batch, rows, columns, 2] or [batch, slices, rows, columns, 3], float32: x, y(, z) of each point, from -1
        (left, top, front) to 1. NaN makes the point NaN, as does infinity with "reflection".
      mode: "nearest" (halves go to the even pixel), "bilinear" (of volumes, trilinear), or "bicubic", of images only.
      padding: what lies outside: "zeros", "border" (the nearest pixel), or "reflection" at the ends of each axis.
      align_corners: -1 and 1 are the centres of the first and last pixel, otherwise their outer edges.

    Returns:
      [batch, rows, columns, channels], or [batch, slices, rows, columns, channels], of the images' dtype; sums are
      float32. Differentiable to any order by images and grid; the gradients are the same in every run, and on the CPU
      for every number of threads. The gradient by the grid is 0 with "nearest", and where "border" and "reflection" put
      a point on the first or last pixel.

    Raises:
      tf.errors.InvalidArgumentError: ranks, batch sizes or dtypes do not fit, or an axis has more than 2^29 pixels.
      ValueError: another mode or padding; "bicubic" for volumes.
    """
    return _sampled(images, grid, mode, padding, int(align_corners), name)


def sample_pixels(images: Any, points: Any, mode: str, padding: str) -> Any:
    """The same with x and y of points in pixels: whole numbers are pixels, without rounding on the way."""
    return _sampled(images, points, mode, padding, _PIXELS, None)


def _sampled(images: Any, grid: Any, mode: str, padding: str, space: int, name: str | None) -> Any:
    is_volume = len(getattr(images, "shape", ())) == 5
    for what, value, allowed in (
        ("mode", mode, _MODES[:2] if is_volume else _MODES),
        ("padding", padding, _PADDINGS),
    ):
        if value not in allowed:
            raise ValueError(f"{what} = {value!r}: must be one of {', '.join(allowed)}")
    options = {"mode": _MODES.index(mode), "padding": _PADDINGS.index(padding), "space": space}
    return (_volume if is_volume else _flat)(images, grid, **options, name=name)


def _define(dims: int, forward: Op, backward: Op) -> None:
    @forward.reference
    def _(images: tf.Tensor, grid: tf.Tensor, *, mode: int, padding: int, space: int) -> tf.Tensor:
        from tftoolkit.custom_ops.grid_sample import plain

        return plain.sample(dims, images, grid, mode, padding, space)

    @forward.gradient
    def _(op: Any, dy: Any) -> Any:
        options = {name: op.get_attr(name) for name in ("mode", "padding", "space")}
        return backward(dy, *op.inputs, **options)

    @backward.reference
    def _(
        dy: tf.Tensor, images: tf.Tensor, grid: tf.Tensor, *, mode: int, padding: int, space: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        from tftoolkit.custom_ops.grid_sample import plain

        return plain.gradients(dims, dy, images, grid, mode, padding, space)

    backward.differentiate_reference()


_define(2, _flat, _flat_grad)
_define(3, _volume, _volume_grad)
