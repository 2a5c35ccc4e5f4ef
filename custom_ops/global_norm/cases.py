"""Shapes and dtypes that drive the tests of global_norm and adamw alike."""

import math
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np


class Case(NamedTuple):
    """The shapes of the tensors of one call, and their dtype."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all elements in a row."""
        return (sum(map(math.prod, self.shapes)),)


# A task of adamw is 2^16 elements of all tensors, one of global_norm 2^17, a block of the norm 2^12, and a vector
# register at most 32: lists that end at these numbers, beside them, and far from them.
ACROSS_TASKS = ((65_536,), (), (3, 21_845), (1,), (131_072,))
WITH_EMPTY = ((0, 3), (4,), (2, 0), (70_000,), (0,))
CASES = (
    Case(((5, 7),)),
    Case(((),)),
    Case(((1,), (2, 3), (), (17, 3))),
    Case(((33,),) * 40),
    *(Case(((size,),)) for size in (4095, 4097, 65_535, 65_536, 65_537)),
    Case(ACROSS_TASKS),
    Case(((784, 64), (64,), (64, 64), (64,), (64, 10), (10,))),
    Case(((300_001,), (3,), (200, 301))),
    Case(((0,),)),
    Case(WITH_EMPTY),
    *(
        Case(shapes, dtype)
        for dtype in ("bfloat16", "float16")
        for shapes in (((5, 7),), ((33,),) * 40, ACROSS_TASKS, WITH_EMPTY)
    ),
)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls the ops with."""
    rng = np.random.default_rng(0)
    return [[np.asarray(rng.standard_normal(shape)).astype(case.dtype) for shape in case.shapes]], {}
