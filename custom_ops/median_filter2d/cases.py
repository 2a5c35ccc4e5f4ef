"""Shapes, windows and dtypes that drive median_filter2d's tests and checks."""

import dataclasses
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """The images' shape and dtype, and the attributes of the op."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    rows: int = 3
    columns: int = 3
    padding: int = 0
    constant: float = 0.0


# 64 numbers of a row are sorted at a time; windows of more than 225 pixels are partitioned.
CASES = (
    Case((2, 5, 7, 3)),
    Case((1, 1, 1, 1), "uint8", 3, 3, 0),
    Case((1, 9, 70, 1), "uint8", 5, 5, 2),
    Case((1, 6, 33, 2), "bfloat16", 3, 5, 1, 2.5),
    Case((2, 4, 5, 3), "int16", 2, 2, 2),
    Case((1, 3, 4, 1), "float64", 4, 7, 0),
    Case((1, 20, 22, 1), "int32", 17, 15, 1, -3),
    Case((1, 5, 64, 1), "float16", 1, 2, 0),
    Case((1, 8, 9, 1), "int64", 1, 1, 0),
    Case((1, 7, 21, 3), "int8", 3, 4, 1, 100),
    Case((1, 7, 13, 1), "uint16", 16, 16, 2),
    Case((1, 6, 65, 1), "uint32", 3, 2, 0),
    Case((1, 4, 5, 2), "uint64", 3, 3, 1, 7),
    Case((0, 4, 4, 1)), Case((2, 0, 4, 1)), Case((2, 4, 4, 0)),
)  # fmt: skip


def call_of(_: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """Numbers of which some are equal."""
    values = np.round(np.random.default_rng(0).standard_normal(case.shape) * 40)
    options = {"rows": case.rows, "columns": case.columns, "padding": case.padding, "constant": float(case.constant)}
    return [np.abs(values).astype(case.dtype) if case.dtype[0] == "u" else values.astype(case.dtype)], options


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, 5, 7, 3)).astype(np.float32)], {}
