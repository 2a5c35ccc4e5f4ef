"""Sizes and dtypes that drive roi_pool's tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of the features, the number of boxes, the bins, the scale, and the dtype."""

    features: tuple[int, ...]
    boxes: int
    bins: tuple[int, int]
    spatial_scale: float = 1.0
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the features, the first input of the forward op."""
        return self.features

    @property
    def dims(self) -> dict[str, Any]:
        """By the names of the schemas."""
        return {"n": self.boxes, "bins_y": self.bins[0], "bins_x": self.bins[1]}


# A task of the gradient has 32 channels.
CASES = (
    Case((2, 9, 7, 5), 6, (3, 2)),
    Case((1, 8, 6, 35), 5, (1, 1), 0.5, "bfloat16"),
    Case((3, 5, 11, 40), 9, (4, 3), 1.0, "float16"),
    Case((2, 1, 1, 3), 4, (2, 2), 0.25),
)
EMPTY_CASES = (Case((2, 5, 4, 3), 0, (2, 2)), Case((1, 0, 4, 3), 3, (2, 2)), Case((2, 4, 3, 0), 2, (1, 2)))


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with; indices beside float16 are int64."""
    rng = np.random.default_rng(0)
    batch, height, width, channels = case.features
    corners = rng.uniform(-0.3, 1.0, (case.boxes, 2)) * [width, height] / case.spatial_scale
    sizes = rng.uniform(-0.2, 0.8, (case.boxes, 2)) * [width, height] / case.spatial_scale
    boxes = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
    indices = rng.integers(0, batch, case.boxes).astype(np.int64 if case.dtype == "float16" else np.int32)
    features = rng.standard_normal(case.features).astype(case.dtype)
    if not name.endswith("Grad"):
        options = {"output_height": case.bins[0], "output_width": case.bins[1], "spatial_scale": case.spatial_scale}
        return [features, boxes, indices], options
    shape = (case.boxes, *case.bins, channels)
    places = rng.integers(-1, height * width, shape).astype(np.int32)
    return [rng.standard_normal(shape).astype(case.dtype), places, features, indices], {}


def _forward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("RoiPool", CASES[0])


def _backward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("RoiPoolGrad", CASES[0])


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {"RoiPool": _forward, "RoiPoolGrad": _backward}
