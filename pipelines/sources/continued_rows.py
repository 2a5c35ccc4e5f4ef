"""Windows of tokens in an order in which the rows of a batch go on in the next one."""

from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Source, Spec

CONTINUES = "continues"


class ContinuedRows:
    """``windows``, which do not overlap, as ``rows`` parts of the corpus side by side.

    Each part is a run of windows, one behind the other. Batch b of ``rows`` examples holds window b of every part, so
    that each row goes on where that of the batch before ended.

    Attributes:
      continued_rows: the size that batches must have.
    """

    def __init__(self, windows: Source, rows: int) -> None:
        self._windows, self.continued_rows = windows, rows
        self._per_row = len(windows) // rows
        if not self._per_row:
            raise ValueError(f"continue_rows={rows}: the corpus has only {len(windows)} windows, too few for each row")
        self.element_spec: Spec = {**windows.element_spec, CONTINUES: tf.TensorSpec([], tf.bool)}

    def __len__(self) -> int:
        return self.continued_rows * self._per_row

    def lengths(self, feature: str) -> np.ndarray:
        """Number of tokens of every window, int64[len(self)]: all the same."""
        lengths: np.ndarray = self._windows.lengths(feature)  # type: ignore[attr-defined]
        return lengths[: len(self)]

    def fetch(self, indices: tf.Tensor) -> Example:
        return {**self._windows.fetch(self._window(indices)), CONTINUES: indices >= self.continued_rows}

    def fingerprint(self) -> dict[str, Any]:
        return {**self._windows.fingerprint(), "continue_rows": self.continued_rows}

    def describe(self, index: int) -> str:
        return self._windows.describe(int(self._window(index)))

    def _window(self, index: Any) -> Any:
        return index % self.continued_rows * self._per_row + index // self.continued_rows


def check_rows_go_on(source: Source, stages: list[str], batch_size: int | None = None) -> None:
    """Raises ValueError if ``stages``, or batches of that size, tear apart what a source lets go on."""
    rows = getattr(source, "continued_rows", None)
    if rows is None:
        return
    begin = f"the rows of this source go on from batch to batch (continue_rows={rows})"
    if stages:
        raise ValueError(f"{stages[0]}: {begin}, which it does not keep; leave it out, or leave continue_rows out")
    if batch_size not in (None, rows):
        raise ValueError(f"batch_size={batch_size}: {begin}; give batch_size={rows}")
