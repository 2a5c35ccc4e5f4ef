"""Shapes and numbers that drive adamw's tests and checks."""

from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

from tftoolkit.custom_ops.global_norm.cases import ACROSS_TASKS, CASES, Case

__all__ = ["ACROSS_TASKS", "ARGUMENTS", "CASES", "Case", "arguments", "call_of", "lists", "options", "rounded"]


def lists(shapes: tuple[tuple[int, ...], ...], dtype: str = "float32", gradients: str = "") -> tuple[list[Any], ...]:
    """Random weights, first moments, second ones (which are positive) and gradients (of the weights' dtype)."""
    rng = np.random.default_rng(0)
    w, m, v, g = ([np.float32(rng.standard_normal(shape)) for shape in shapes] for _ in range(4))
    v = [np.square(x) + np.float32(0.01) for x in v]
    return rounded(w, dtype), m, v, rounded(g, gradients or dtype)


def rounded(tensors: list[Any], dtype: str) -> list[Any]:
    """In another dtype."""
    return [tensor.astype(dtype) for tensor in tensors]


def options(count: int, beta_1: float = 0.9, beta_2: float = 0.999) -> dict[str, Any]:
    """Attributes for so many weights: rates and decays differ from weight to weight."""
    return {
        "beta_1": beta_1,
        "beta_2": beta_2,
        "epsilon": 1e-3,
        "rate_factors": [1.0 + i % 3 for i in range(count)],
        "weight_decays": [0.1 * (i % 2) for i in range(count)],
    }


def arguments() -> tuple[list[Any], dict[str, Any]]:
    """What ``ops check`` calls the op with. Its betas are below 0.8: a check makes them a quarter larger."""
    return [True, np.float32(0.1), np.float32(3), *lists(((5, 7), (3,), ()))], options(3, 0.6, 0.79)


def arguments_with_master() -> tuple[list[Any], dict[str, Any]]:
    """The second weight is not the rounding of its master, so that it counts."""
    master, m, v, g = lists(((3, 5), ()))
    w = rounded([master[0], master[1] + 1], "bfloat16")
    return [True, np.float32(0.1), np.float32(3), w, m, v, master, rounded(g, "bfloat16")], options(2, 0.6, 0.79)


ARGUMENTS = {"AdamWMaster": arguments_with_master}


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls the ops with; masters are of bfloat16 weights where the case says float32."""
    master, m, v, g = lists(case.shapes, "float32", case.dtype)
    has_master = name == "AdamWMaster"
    w = rounded(master, "bfloat16" if has_master and case.dtype == "float32" else case.dtype)
    scalars = [True, np.float32(0.1), np.float32(3)]
    return [*scalars, w, m, v, *([master] if has_master else []), g], options(len(case.shapes))
