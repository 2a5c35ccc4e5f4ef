"""Shapes, options and dtypes that drive ctc_loss's tests, checks and benchmark alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes; `ragged`: labels lie one behind the other."""

    batch: int
    time: int
    classes: int
    labels: int
    ragged: bool = False
    blank: int = 0
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the logits."""
        return self.batch, self.time, self.classes

    @property
    def dims(self) -> dict[str, Any]:
        """By the names of the schemas: dense labels."""
        return {"...": (self.batch, self.labels)}

    @property
    def attributes(self) -> dict[str, Any]:
        """Beside the defaults."""
        return {"blank": self.blank}

    def __str__(self) -> str:
        kind = "ragged" if self.ragged else "dense"
        return (
            f"{self.batch}x{self.time}x{self.classes}, {self.labels} labels, {kind}, blank {self.blank}, {self.dtype}"
        )


# A vector holds 4, 8 or 16 pairs of states, a block 32 frames, a block of logits 2048: sizes below, at and beside
# these; as many frames as labels; classes of which most are not among the labels, and few, which return often.
FLOAT_CASES = (
    Case(3, 7, 5, 2),
    Case(1, 1, 2, 1, blank=1),
    Case(2, 33, 3, 12, ragged=True),
    Case(3, 65, 40, 17, ragged=True, blank=39),
    Case(2, 40, 2049, 40),
    Case(1, 200, 33, 64),
    Case(2, 40, 33, 16, blank=32),  # any labels and lengths below 16 will do, such as those that sanitizers draw
)
CASES = tuple(dataclasses.replace(case, dtype=dtype) for case in FLOAT_CASES for dtype in DTYPES)
EMPTY_CASES = (Case(0, 4, 5, 2), Case(2, 0, 5, 0), Case(2, 4, 5, 0), Case(2, 4, 5, 0, ragged=True))


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with: the first sequence is as long as may be, the last one often too short
    for its labels."""
    rng, c = np.random.default_rng(0), case
    logits = rng.standard_normal(c.shape).astype(c.dtype)
    labels = rng.integers(0, c.classes - 1, (c.batch, c.labels)) if c.classes > 1 else np.zeros((c.batch, 0), np.int64)
    labels += labels >= c.blank
    frames, counts = rng.integers(c.time // 2, c.time + 1, c.batch), rng.integers(0, c.labels + 1, c.batch)
    frames[:1], counts[:1] = c.time, min(c.labels, (c.time + 1) // 2)
    counts[-1:] = c.labels
    if c.ragged:
        labels = np.concatenate([row[:count] for row, count in zip(labels, counts, strict=True)])
    inputs = [logits, labels.astype(np.int32), frames.astype(np.int64), counts.astype(np.int32)]
    if not name.endswith("Grad"):
        return inputs, {"blank": c.blank}
    d_loss = rng.standard_normal(c.batch).astype(np.float32)
    d_sum, largest, total = (rng.standard_normal(c.shape[:2]).astype(np.float32) for _ in range(3))
    return [*inputs, d_loss, d_sum, largest, 1 + np.abs(total)], {"blank": c.blank}


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    "CtcLoss": lambda: call_of("CtcLoss", FLOAT_CASES[0]),
    "CtcLossGrad": lambda: call_of("CtcLossGrad", FLOAT_CASES[0]),
}
