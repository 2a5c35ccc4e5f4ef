"""Numbers of boxes, options and dtypes that drive batched_nms's tests and checks."""

from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np


class Case(NamedTuple):
    """The shape of the boxes, [..., n, 4], and their dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# 32 kept boxes are compared at a time.
SHAPES = ((7, 4), (1, 4), (2, 3, 40, 4), (200, 4))
EMPTY_SHAPES = ((0, 4), (0, 5, 4), (3, 0, 4))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)


def boxes_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Boxes that overlap here and there; one in ten has no inside."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.random((*shape[:-1], 2)) * 4, rng.random((*shape[:-1], 2)) * 2 - 0.1
    return np.concatenate([corners, corners + sizes], -1)


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with."""
    boxes, scores = boxes_of((12, 4)).astype(np.float32), np.random.default_rng(1).random(12).astype(np.float32)
    classes = np.array([0, 7] * 6, np.int32)
    return [boxes, scores, classes], {"iou_threshold": 0.2, "max_output": 5, "score_threshold": 0.1}


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls the op with: each dtype has classes of another kind."""
    rng = np.random.default_rng(0)
    sets = case.shape[:-1]
    classes = {
        "float32": rng.integers(0, 3, sets).astype(np.int32),
        "bfloat16": None,
        "float16": rng.integers(-(2**40), 2**40, sets) // 2**40,
    }[case.dtype]
    options = {"iou_threshold": 0.3, "max_output": 20, "score_threshold": 0.1}
    return [boxes_of(case.shape).astype(case.dtype), rng.random(sets).astype(case.dtype), classes], options
