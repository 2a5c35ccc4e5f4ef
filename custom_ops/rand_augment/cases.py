"""Shapes of the picture that drive rand_augment's tests."""

from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """The shape of the picture; its dtype is always uint8."""

    shape: tuple[int, ...]
    dtype: str = "uint8"


# With less than 3 pixels sharpness has no inner pixel. Odd widths end inside a vector register.
SHAPES = ((1, 1, 3), (1, 7, 3), (2, 5, 1), (3, 3, 3), (17, 31, 3), (33, 64, 1), (64, 97, 3))
EMPTY_SHAPES = ((0, 4, 3), (5, 0, 1))
MAGNITUDES = (0, 1, 9, 14, 30)

CASES = tuple(map(Case, SHAPES + EMPTY_SHAPES))


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with."""
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return [picture, np.array([6, 13], np.int32), np.array([False, True])], {"magnitude": 9}
