"""Shapes and dtypes that drive softmax_cross_entropy's tests and checks."""

from typing import NamedTuple


class Case(NamedTuple):
    """The shape of the logits (the last entry is the number of classes) and their dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Odd numbers of classes end inside a vector register; a block of a sum has 2048, a task 2^15 elements.
SHAPES = ((3, 5, 8), (7,), (2, 1), (4100, 17), (5, 2049), (3, 10_001))
EMPTY_SHAPES = ((0, 8), (0, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)
