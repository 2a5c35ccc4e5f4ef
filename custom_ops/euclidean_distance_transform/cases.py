"""Shapes that drive euclidean_distance_transform's tests and checks."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The images' shape, and the dtype of the distances."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "float16", "float64")

# 256 columns are a task of the first pass, 16 384 pixels one of the second.
SHAPES = ((2, 5, 7), (1, 1), (9, 1), (1, 12), (3, 17, 31), (20, 300), (130, 9))
EMPTY_SHAPES = ((0, 4, 4), (2, 0, 3), (3, 0))

CASES = tuple(Case(shape, DTYPES[i % 3]) for i, shape in enumerate(SHAPES + EMPTY_SHAPES))


def call_of(_: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Few pixels are 0."""
    images = np.random.default_rng(0).random(case.shape) < 0.9
    return [images.astype(np.uint8)], {"dtype": case.dtype}


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with."""
    return call_of("", Case((2, 5, 7), "float32"))
