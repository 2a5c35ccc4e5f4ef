"""Sizes that drive adamw_rows' tests and checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

OPTIONS = {"beta_1": 0.6, "beta_2": 0.79, "epsilon": 1e-3, "weight_decay": 0.1}  # a check makes betas a quarter larger


@dataclasses.dataclass(frozen=True)
class Case:
    """A table of this shape, of which ``ids`` rows are used, drawn from the first ``different``."""

    shape: tuple[int, ...]
    ids: int
    different: int
    dtype: str = "float32"

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the schemas."""
        return {"n": self.ids}


# A task has 2^14 elements; ids are sorted by 11 bits at a time; rows are asked for 8 rows ahead.
CASES = (
    Case((20, 5), 7, 20),
    Case((9,), 30, 4),
    Case((300, 3, 11), 2000, 300),
    Case((5000, 64), 900, 5000),
    Case((100_000, 1), 40_000, 100_000),
    Case((50, 33), 3000, 1),
    Case((40, 20_000), 6, 3),
)
EMPTY_CASES = (Case((5, 3), 0, 5), Case((0, 3), 0, 1), Case((4, 0), 3, 4))


def arrays(case: Case, seed: int = 0) -> tuple[Any, ...]:
    """Random rows: weights, first moments, second ones (which are positive), indices, and gradients."""
    rng = np.random.default_rng(seed)
    w, m, v = (np.float32(rng.standard_normal(case.shape)) for _ in range(3))
    indices = rng.integers(0, case.different, case.ids)
    gradients = np.float32(rng.standard_normal((case.ids, *case.shape[1:])))
    return w, m, np.square(v) + np.float32(0.01), indices, gradients


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with."""
    *kept, indices, gradients = arrays(case)
    if name == "SumRows":
        return [gradients, indices.astype(np.int32)], {}
    return [*kept, indices, gradients, True, np.float32(0.1), np.float32(3)], OPTIONS


def _update() -> tuple[list[Any], dict[str, Any]]:
    return call_of("AdamWRows", CASES[0])


def _sum() -> tuple[list[Any], dict[str, Any]]:
    return call_of("SumRows", Case((5, 3), 7, 4))


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {"AdamWRows": _update, "SumRows": _sum}
