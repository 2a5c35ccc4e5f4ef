"""Shapes and dtypes that drive layer_norm's tests and checks."""

from typing import NamedTuple


class Case(NamedTuple):
    """The shape of x (its last entry is gamma's length) and the dtype of all."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Odd lengths end inside a vector register; 1024 elements are one block of a sum; 4100 rows are several tasks. On a GPU,
# a warp takes rows of up to 2 KiB and keeps half of that; 12 288 elements' sums fit shared memory.
SHAPES = (
    (3, 5, 8), (8,), (2, 1), (7, 13), (4100, 17), (33, 1024), (3, 4099), (20_000, 3), (2, 304), (1, 1040), (2, 12_304)
)  # fmt: skip
EMPTY_SHAPES = ((0, 8), (3, 0), (0, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)
