"""Sizes and dtypes that drive the tests and checks of linear-chain CRFs."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """The sizes of the logits, whether there are scores of first and last states, and the dtype."""

    batch: int
    time: int
    states: int
    ends: bool = False
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, int, int]:
        """That of the logits."""
        return self.batch, self.time, self.states


# Rows of states are padded to 8; some tasks have several sequences, of which the first two are of length 0 and 1.
SIZES = ((3, 4, 3, True), (2, 1, 1, False), (5, 9, 16, False), (40, 7, 17, True), (4, 130, 5, True), (3, 20, 50, False))
CASES = tuple(Case(*sizes, dtype) for sizes in SIZES for dtype in DTYPES)
EMPTY_CASES = (Case(0, 4, 3), Case(2, 0, 3, True))


def lengths_of(case: Case) -> np.ndarray:
    """0 and 1 first, the last sequence whole."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, case.time + 1, case.batch)
    lengths[:2] = np.minimum([0, 1], case.time)[: case.batch]
    lengths[2:][-1:] = case.time
    return lengths.astype(np.int64 if case.dtype == "bfloat16" else np.int32)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(case.shape).astype(case.dtype)
    tags = rng.integers(0, max(1, case.states), case.shape[:2]).astype(
        np.int64 if case.dtype == "float16" else np.int32
    )
    transitions, *ends = (rng.standard_normal((case.states,) * rank).astype(np.float32) for rank in (2, 1, 1))
    scores = [transitions, *(ends if case.ends else (None, None))]
    tags_if_any = [tags] if name.startswith("CrfLogLikelihood") else []
    upstream = [rng.standard_normal(case.batch).astype(np.float32)] if name.endswith("Grad") else []
    return [logits, *tags_if_any, lengths_of(case), *scores, *upstream], {}


OPS = ("CrfDecode", "CrfLogLikelihood", "CrfLogLikelihoodGrad", "CrfMarginals")
# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    name: functools.partial(call_of, name, Case(3, 4, 3, True)) for name in OPS
}
