"""Shapes and dtypes that drive dropout_add's tests and checks."""

from typing import NamedTuple


class Case(NamedTuple):
    """The shape of x and residual and their dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Four elements share a counter, 512 a chunk, 2^15 a task.
SHAPES = ((3, 5, 8), (), (1,), (511,), (513,), (32_769,), (300, 257))
EMPTY_SHAPES = ((0,), (3, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)
