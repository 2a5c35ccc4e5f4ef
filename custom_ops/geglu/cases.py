"""Shapes and dtypes that drive geglu's tests and checks."""

from typing import NamedTuple


class Case(NamedTuple):
    """The shape of gate and up and their dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Odd sizes end inside a vector register; a task is 2^15 elements.
SHAPES = ((3, 5, 8), (), (1,), (7, 13), (32_769,), (300, 257))
EMPTY_SHAPES = ((0,), (3, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)
