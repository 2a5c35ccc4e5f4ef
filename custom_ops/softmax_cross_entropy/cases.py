"""Shapes and dtypes that drive softmax_cross_entropy's tests and checks."""

from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np


class Case(NamedTuple):
    """The shape of the logits (the last entry is the number of classes) and their dtype."""

    shape: tuple[int, ...]
    dtype: str


DTYPES = ("float32", "bfloat16", "float16")

# Odd numbers of classes end inside a vector register; a block of a sum has 2048, a task 2^15 elements. On a GPU, a warp
# takes rows of up to 1024.
SHAPES = ((3, 5, 8), (7,), (2, 1), (4100, 17), (5, 2049), (3, 10_001), (1, 1031))
EMPTY_SHAPES = ((0, 8), (0, 0))

CASES = tuple(Case(shape, dtype) for shape in SHAPES + EMPTY_SHAPES for dtype in DTYPES)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls the op and its gradient with: each dtype has other options."""
    rng = np.random.default_rng(0)
    *rows, classes = case.shape
    labels = rng.integers(0, max(1, classes), rows).astype(np.int64 if case.dtype == "float16" else np.int32)
    labels = np.where(rng.random(rows) < 0.25, np.int32(-100), labels).astype(labels.dtype)
    inputs = [rng.standard_normal(case.shape).astype(case.dtype), labels]
    if name.endswith("Grad"):
        d_loss, d_sum, largest, total = (rng.standard_normal(rows).astype(np.float32) for _ in range(4))
        inputs += [d_loss, d_sum, largest, 1 + np.abs(total)]
    options = {"float32": {}, "bfloat16": {"label_smoothing": 0.1}, "float16": {"z_loss": 0.01, "label_smoothing": 0.2}}
    return inputs, options[case.dtype]
