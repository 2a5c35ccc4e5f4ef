"""Shapes and dtypes that drive rotary_embedding's tests and checks."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The shape of x, [batch, length, heads, depth], and its dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Depths whose halves end inside a vector register; one token; more elements than a task has.
SHAPES = ((2, 5, 3, 8), (1, 1, 1, 2), (3, 7, 2, 34), (2, 300, 4, 64))
EMPTY_SHAPES = ((0, 4, 2, 8), (2, 0, 2, 8), (2, 4, 0, 8))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with: an even depth, part of which is turned, and one row of positions."""
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    return [x, np.array([[0, 3, 5, 1_000_000, 7]], np.int32)], {"dim": 6, "base": 100.0}
