"""Shapes and dtypes that drive rms_norm's tests, gradient checks and benchmark alike."""

from typing import NamedTuple


class Case(NamedTuple):
    """The shape of x (its last entry is gamma's length) and the dtype of both."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Odd lengths end inside a vector register; 1 and primes have no full one; 4100 and 70 000 rows need several tasks. On a
# GPU, a warp takes rows of up to 2 KiB and keeps half of that; 12 288 elements' sums fit shared memory.
SHAPES = (
    (8,), (1,), (3, 5, 8), (2, 1), (7, 13), (1, 257), (4100, 17), (33, 1024), (3, 4099), (70_000, 3), (1, 1040),
    (2, 12_304),
)  # fmt: skip
EMPTY_SHAPES = ((0, 8), (4, 0, 8), (3, 0), (0, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)
BENCHMARK = tuple(
    Case(shape, dtype) for shape in ((4096, 1024), (512, 4096), (8, 64)) for dtype in ("float32", "bfloat16")
)
