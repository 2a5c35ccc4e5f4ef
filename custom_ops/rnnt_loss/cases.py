"""Shapes, options and dtypes that drive rnnt_loss' tests, checks and benchmark alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy learns the name bfloat16)
import numpy as np

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and options; `labels` may be 0."""

    batch: int
    time: int
    labels: int
    classes: int
    blank: int = 0
    fastemit: float = 0.0
    dtype: str = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the joint tensor."""
        return self.batch, self.time, self.labels + 1, self.classes

    @property
    def dims(self) -> dict[str, int]:
        """By the names of the schemas."""
        return {"labels": self.labels}

    @property
    def attributes(self) -> dict[str, Any]:
        """Beside the defaults."""
        return {"blank": self.blank, "fastemit": self.fastemit}

    def __str__(self) -> str:
        options = f"blank {self.blank}, fastemit {self.fastemit}"
        return f"{self.batch}x{self.time}x{self.labels}+1x{self.classes}, {options}, {self.dtype}"


# A vector holds 4, 8 or 16 positions, a block of logits 2048, a task of sums 32 frames or 64 classes: sizes below, at
# and beside these; more labels than frames.
FLOAT_CASES = (
    Case(3, 5, 3, 7),
    Case(1, 1, 1, 2, blank=1),
    Case(2, 33, 17, 65, fastemit=0.5),
    Case(2, 4, 33, 9, blank=4),
    Case(1, 3, 2, 2049),
    Case(2, 40, 15, 64, blank=63),  # any labels and lengths below 16 will do, such as those that sanitizers draw
)
CASES = tuple(dataclasses.replace(case, dtype=dtype) for case in FLOAT_CASES for dtype in DTYPES)
EMPTY_CASES = (Case(0, 4, 2, 5), Case(2, 0, 0, 5), Case(2, 4, 0, 5))


def call_of(name: str, case: Case) -> tuple[list[Any], dict[str, Any]]:
    """What the table of cases calls an op with: the first sequence is as long as may be."""
    rng, c = np.random.default_rng(0), case

    def draw(*shape: int, dtype: str = "float32") -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    additive = "Additive" in name
    if additive:
        inputs = [draw(c.batch, c.time, c.classes, dtype=c.dtype), draw(c.batch, *c.shape[2:], dtype=c.dtype)]
    else:
        inputs = [draw(*c.shape, dtype=c.dtype)]
    labels = rng.integers(0, c.classes - 1, (c.batch, c.labels))
    labels += labels >= c.blank
    frames, counts = rng.integers(c.time // 2, c.time + 1, c.batch), rng.integers(0, c.labels + 1, c.batch)
    frames[:1], counts[:1] = c.time, c.labels
    inputs += [labels.astype(np.int32), frames.astype(np.int64), counts.astype(np.int32)]
    options = {"blank": c.blank, "fastemit": c.fastemit}
    if not name.endswith("Grad"):
        return inputs, options
    cells = c.shape[:3]
    inputs += [draw(c.batch), draw(*cells)]
    return [*inputs, 1 + abs(draw(*cells))] if additive else [*inputs, draw(*cells), 1 + abs(draw(*cells))], options


# What ``ops check`` calls each op with.
ARGUMENTS: dict[str, Callable[[], tuple[list[Any], dict[str, Any]]]] = {
    name: lambda name=name: call_of(name, FLOAT_CASES[0])  # type: ignore[misc]
    for name in ("RnntLoss", "RnntLossGrad", "RnntLossAdditive", "RnntLossAdditiveGrad")
}
