"""Sizes, options and dtypes that drive roi_align's tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of the features, the number of boxes, the bins, the options, and the dtype."""

    features: tuple[int, ...]
    boxes: int
    bins: tuple[int, int]
    options: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the features, the first input of the forward op."""
        return self.features

    @property
    def dims(self) -> dict[str, Any]:
        """By the names of the schemas."""
        return {"n": self.boxes, "bins_y": self.bins[0], "bins_x": self.bins[1]}

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options]
        return ", ".join([f"{self.boxes} boxes of {self.bins} on {self.features}", *options, self.dtype])


# 32 channels are summed up at once, on a GPU 4 or 8 read; boxes within a pixel, on the border, beyond it, and turned.
CASES = (
    Case((2, 9, 7, 5), 8, (3, 2)),
    Case((1, 12, 13, 8), 7, (2, 5), (("spatial_scale", 0.5), ("sampling_ratio", 2))),
    Case((1, 8, 6, 35), 5, (1, 1), (("sampling_ratio", 3), ("aligned", False)), "bfloat16"),
    Case((3, 5, 11, 40), 9, (4, 3), (("aligned", False),), "float16"),
    Case((2, 1, 1, 3), 4, (2, 2), (("spatial_scale", 0.25),)),
    Case((1, 40, 60, 64), 30, (7, 7), (("sampling_ratio", 2),)),
)
EMPTY_CASES = (Case((2, 5, 4, 3), 0, (2, 2)), Case((1, 0, 4, 3), 3, (2, 2)), Case((2, 4, 3, 0), 2, (1, 2)))


def boxes_of(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """[n, 4]: inside, beyond the border, and turned around."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.3, 1.0, (n, 2)) * [width, height]
    sizes = rng.uniform(-0.2, 0.8, (n, 2)) * [width, height]
    return np.concatenate([corners, corners + sizes], 1).astype(np.float32)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with; indices beside float16 are int64."""
    rng = np.random.default_rng(0)
    batch, height, width, channels = case.features
    options = dict(case.options)
    scale = options.get("spatial_scale", 1.0)
    indices = rng.integers(0, batch, case.boxes).astype(np.int64 if case.dtype == "float16" else np.int32)
    features = rng.standard_normal(case.features).astype(case.dtype)
    inputs = [features, boxes_of(case.boxes, height, width) / np.float32(scale), indices]
    if name.endswith("Grad"):
        return [rng.standard_normal((case.boxes, *case.bins, channels)).astype(case.dtype), *inputs], options
    return inputs, {**options, "output_height": case.bins[0], "output_width": case.bins[1]}


def _forward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("RoiAlign", CASES[0])


def _backward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("RoiAlignGrad", CASES[0])


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {"RoiAlign": _forward, "RoiAlignGrad": _backward}
