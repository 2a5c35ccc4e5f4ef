"""Sizes and dtypes that drive embedding_bag's tests and checks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """A table of ``rows`` times ``depth``, ``bags`` bags that hold ``ids`` ids, and the dtype."""

    rows: int
    depth: int
    bags: int
    ids: int
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, int]:
        """That of the table."""
        return self.rows, self.depth

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the schemas."""
        return {"bags": self.bags, "ids": self.ids}


# Rows are asked for 12 ids ahead; a task has 2^15 elements; odd depths end inside a vector register.
SIZES = ((20, 5, 3, 7), (16, 1, 1, 40), (100, 33, 40, 900), (50, 64, 9, 4), (17, 257, 300, 700), (3, 2050, 5, 60))
CASES = tuple(Case(*sizes, dtype) for sizes in SIZES for dtype in DTYPES)
EMPTY_CASES = (Case(5, 3, 4, 0), Case(5, 3, 0, 0), Case(0, 3, 2, 0), Case(5, 0, 2, 6))


def ids_of(case: Case, seed: int = 0, padded: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids, some of them -1 if ``padded``, and borders of bags, some of them empty."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, max(1, case.rows), case.ids).astype(np.int64 if case.dtype == "float16" else np.int32)
    ids = np.where(padded & (rng.random(case.ids) < 0.3), -1, ids).astype(ids.dtype)
    borders = [0, *sorted(rng.integers(0, case.ids + 1, max(0, case.bags - 1))), case.ids]
    return ids, np.array(borders[: case.bags + 1], np.int32 if case.dtype == "bfloat16" else np.int64)


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with: each dtype has other options."""
    rng = np.random.default_rng(1)
    padded = case.dtype != "float32"
    ids, borders = ids_of(case, padded=padded)
    table, dy = (rng.standard_normal((n, case.depth)).astype(case.dtype) for n in (case.rows, case.bags))
    weights = 0.5 + rng.random(case.ids).astype(np.float32)
    mean, options = {"mean": case.dtype != "bfloat16"}, {"padded": padded}
    which = rng.integers(0, max(1, case.ids), dy.shape).astype(np.int32)
    calls: dict[str, tuple[list[Any], dict[str, Any]]] = {
        "EmbeddingBag": ([table, ids, borders, weights if padded else None], mean | options),
        "EmbeddingBagGrad": ([dy, ids, borders, weights if padded else None], mean),
        "EmbeddingBagWeightsGrad": ([table, ids, borders, weights, dy], mean | options),
        "EmbeddingBagMax": ([table, ids, borders], options),
        "EmbeddingBagMaxGrad": ([dy, ids, borders, which], {}),
    }
    return calls[name]


OPS = ("EmbeddingBag", "EmbeddingBagGrad", "EmbeddingBagMax", "EmbeddingBagMaxGrad", "EmbeddingBagWeightsGrad")
# What ``ops check`` calls each op with; of one dtype, since it casts to the others.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    name: functools.partial(call_of, name, Case(7, 5, 3, 6)) for name in OPS
}
