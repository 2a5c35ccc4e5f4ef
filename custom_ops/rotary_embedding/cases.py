"""Shapes and dtypes that drive rotary_embedding's tests and checks."""

from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np


class Case(NamedTuple):
    """The shape of x, [batch, length, heads, depth], and its dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Depths whose halves end inside a vector register; one token; more elements than a task has; on a GPU, more heads than
# a thread turns, and halves of whole packs of 16 bytes.
SHAPES = ((2, 5, 3, 8), (1, 1, 1, 2), (3, 7, 2, 34), (2, 300, 4, 64), (1, 3, 9, 32))
EMPTY_SHAPES = ((0, 4, 2, 8), (2, 0, 2, 8), (2, 4, 0, 8))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with: an even depth, part of which is turned, and one row of positions."""
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    return [x, np.array([[0, 3, 5, 1_000_000, 7]], np.int32)], {"dim": 6, "base": 100.0}


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls the op with: each dtype has positions and pairs of another kind."""
    batch, length, _, depth = case.shape
    rng = np.random.default_rng(0)
    positions = {
        "float32": rng.integers(-100, 1_000_000, (1, length)).astype(np.int32),
        "bfloat16": None,
        "float16": rng.integers(0, 1_000_000, (batch, length)),
    }[case.dtype]
    attributes = {
        "dim": depth // 2 if depth >= 16 and depth % 4 == 0 else 0,
        "interleaved": case.dtype != "float32",
        "start": 3 if positions is None else 0,
    }
    return [rng.standard_normal(case.shape).astype(case.dtype), positions], attributes
