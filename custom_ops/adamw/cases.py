"""Shapes and numbers that drive adamw's tests and checks."""

from typing import Any

import numpy as np

from tftoolkit.custom_ops.global_norm.cases import CASES, Case

__all__ = ["CASES", "Case", "arguments", "lists", "options"]


def lists(shapes: tuple[tuple[int, ...], ...]) -> tuple[list[Any], ...]:
    """Random weights, first moments, second ones (which are positive) and gradients."""
    rng = np.random.default_rng(0)
    w, m, v, g = ([np.float32(rng.standard_normal(shape)) for shape in shapes] for _ in range(4))
    return w, m, [np.square(x) + np.float32(0.01) for x in v], g


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
