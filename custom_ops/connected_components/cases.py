"""Shapes and dtypes that drive connected_components' tests and checks."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The images' shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "int16", "int32")

# 2^16 pixels are a strip: the last two have several, the rows of the last are longer than one.
SHAPES = ((2, 5, 7), (1, 1), (9, 1), (1, 12), (3, 17, 31), (300, 500), (2, 70_000))
EMPTY_SHAPES = ((0, 4, 4), (2, 0, 3), (3, 0))

CASES = tuple(Case(shape, DTYPES[i % len(DTYPES)]) for i, shape in enumerate(SHAPES + EMPTY_SHAPES))


def call_of(_: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Whole numbers, of which few differ."""
    return [np.random.default_rng(0).integers(0, 3, case.shape).astype(case.dtype)], {}


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with."""
    return call_of("", Case((2, 5, 7), "int32"))
