"""Shapes, options and dtypes that drive grid_sample's tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The images' shape, the points of each, the attributes of the ops and the images' dtype.

    Of a case with two sizes of points, the images are flat, with three they are volumes.
    """

    shape: tuple[int, ...]
    points: tuple[int, ...]
    mode: int = 1
    padding: int = 0
    space: int = 0
    dtype: str = "float32"

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the schemas."""
        names = ("batch", *("depth", "height", "width")[-len(self.points) :], "channels")
        points = ("slices", "rows", "columns")[-len(self.points) :]
        return {**dict(zip(names, self.shape, strict=True)), **dict(zip(points, self.points, strict=True))}


# 64 points are a chunk, 16 384 values of y a task. One channel and three are unrolled; odd numbers end inside a vector
# register. On a GPU a thread sums up to 8 channels' products, a warp more.
FLAT = (
    Case((2, 5, 7, 3), (4, 6)),
    Case((1, 6, 5, 1), (13, 11), 1, 2, 1),
    Case((1, 3, 9, 33), (2, 3), 2, 2, 1),
    Case((2, 4, 4, 3), (3, 5), 2, 1, 0),
    Case((2, 5, 4, 9), (3, 4), 0, 2, 0),
    Case((1, 90, 70, 5), (80, 60), 1, 0, 2),
    Case((2, 30, 40, 33), (30, 20), 2, 2, 0),
)
VOLUMES = (
    Case((1, 3, 4, 2, 3), (2, 3, 4)),
    Case((1, 4, 3, 2, 10), (3, 2, 2), 1, 2, 1),
    Case((2, 9, 8, 7, 2), (12, 11, 10), 1, 1, 0),
)
EMPTY_CASES = (Case((2, 0, 4, 3), (3, 2)), Case((2, 4, 5, 3), (0, 2)))

CASES = tuple(dataclasses.replace(case, dtype=dtype) for case in FLAT + VOLUMES + EMPTY_CASES for dtype in DTYPES)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]] | None:
    """What the table of cases calls an op with; None for an op of the other rank."""
    return _call(name, case) if name.startswith("GridSample3d") == (len(case.points) == 3) else None


def _call(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    batch, *sizes, channels = case.shape
    images = rng.standard_normal(case.shape).astype(case.dtype)
    grid = rng.uniform(-1.4, 1.4, (batch, *case.points, len(case.points)))
    if case.space == 2:
        grid = (grid + 1) / 2 * np.array(sizes[::-1])
    inputs: list[Any] = [images, grid.astype(np.float32)]
    if name.endswith("Grad"):
        inputs.insert(0, rng.standard_normal((batch, *case.points, channels)).astype(case.dtype))
    return inputs, {"mode": case.mode, "padding": case.padding, "space": case.space}


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    "GridSample": lambda: _call("GridSample", CASES[0]),
    "GridSampleGrad": lambda: _call("GridSampleGrad", CASES[0]),
    "GridSample3d": lambda: _call("GridSample3d", VOLUMES[0]),
    "GridSample3dGrad": lambda: _call("GridSample3dGrad", VOLUMES[0]),
}
