"""Sizes, options and dtypes that drive deform_conv2d's tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The shape of x, the kernel's size, outputs, groups, and strides, padding and dilation down and to the right."""

    x: tuple[int, ...]
    kernel: tuple[int, int]
    outputs: int
    groups: int = 1
    offset_groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = False
    mask: bool = False
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of x, the first input of the forward op."""
        return self.x

    @property
    def size(self) -> list[int]:
        """Of y."""
        given = zip(self.x[1:3], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in given]

    @property
    def points(self) -> int:
        """Of all groups of offsets."""
        return self.offset_groups * self.kernel[0] * self.kernel[1]

    @property
    def dims(self) -> dict[str, Any]:
        """By the names of the schemas."""
        height, width = self.size
        return {
            "out_height": height, "out_width": width, "offsets": 2 * self.points, "points": self.points,
            "kernel_height": self.kernel[0], "kernel_width": self.kernel[1],
            "group_channels": self.x[3] // self.groups, "out_channels": self.outputs,
        }  # fmt: skip

    @property
    def steps(self) -> dict[str, int]:
        """The ops' attributes."""
        given = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return {f"{name}_{axis}": value for name, pair in given.items() for axis, value in zip("yx", pair, strict=True)}


# A tile has 96 pixels, a chunk 64 channels, a panel 8, 16 or 32 outputs, a product 256 steps: sizes beside these.
CASES = (
    Case((2, 5, 4, 4), (3, 3), 3, offset_groups=2, padding=(1, 1), bias=True, mask=True),
    Case((1, 7, 9, 6), (2, 3), 4, 2, 3, (2, 1), (2, 0), (1, 2), mask=True, dtype="bfloat16"),
    Case((1, 6, 6, 6), (1, 2), 6, 3, 2, (1, 2), (0, 3), (2, 1), bias=True, dtype="float16"),
    Case((3, 3, 3, 1), (1, 1), 1),
    Case((1, 11, 10, 70), (3, 3), 35, padding=(1, 1), bias=True, mask=True),
)
EMPTY_CASES = (
    Case((0, 5, 4, 4), (3, 3), 3, padding=(1, 1), mask=True, bias=True),
    Case((1, 2, 4, 4), (3, 3), 3),
    Case((1, 5, 4, 4), (3, 3), 0, mask=True),
)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(case.dtype)

    outer = (case.x[0], *case.size)
    x, offset = normal(*case.x), 2 * normal(*outer, 2 * case.points)
    weight, mask = normal(*case.kernel, case.x[3] // case.groups, case.outputs), np.abs(normal(*outer, case.points))
    if name.endswith("Grad"):
        given = [normal(*outer, case.outputs), x, offset, weight, mask if case.mask else offset]
        return given, {**case.steps, "masked": case.mask, "has_dmask": case.mask}
    return [x, offset, weight, normal(case.outputs) if case.bias else None, mask if case.mask else None], case.steps


def _forward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("DeformConv2d", CASES[0])


def _backward() -> tuple[list[Any], dict[str, Any]]:
    return call_of("DeformConv2dGrad", CASES[0])


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    "DeformConv2d": _forward,
    "DeformConv2dGrad": _backward,
}
