"""The record of a run: ``metrics.jsonl`` and TensorBoard events."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


class MetricsLog:
    """Writes ``metrics.jsonl`` and ``tensorboard/`` in a run folder.

    Each line of ``metrics.jsonl`` is an object ``{"kind": "train" | "eval", "step": finished steps, name: number, …}``.
    It holds nothing that depends on the clock, so that an interrupted and resumed run writes the same bytes as an
    undisturbed one; rates go to TensorBoard only. A number that isn't finite is null (JSON has no other word for it).
    A resumed run adds a TensorBoard file; steps that were repeated are in both.
    """

    def __init__(self, directory: Path, step: int) -> None:
        """Open the record after ``step`` finished steps; what it says of later ones is dropped."""
        self.last: dict[str, dict[str, Any]] = {}
        path = directory / "metrics.jsonl"
        self._file = path.open("ab+")
        self._file.seek(0)
        self._file.truncate(self._end_of(step))
        self._writer = tf.summary.create_file_writer(str(directory / "tensorboard"))

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line and the TensorBoard scalars ``<kind>/<name>``."""
        clash = {"kind", "step"} & metrics.keys()
        if clash:
            raise ValueError(f"a metric can't be called {sorted(clash)[0]!r}: metrics.jsonl uses that name itself")
        values = {name: _number(name, value) for name, value in metrics.items()}
        entry = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        self.last[kind] = entry
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{kind}/{name}", math.nan if value is None else value)

    def write_rates(self, step: int, rates: Mapping[str, float]) -> None:
        """Add TensorBoard scalars that depend on the clock."""
        with self._writer.as_default(step=step):
            for name, value in rates.items():
                tf.summary.scalar(f"rate/{name}", value)

    def flush(self) -> None:
        """Bring everything to the disk; called before a checkpoint is written, which must not know more than this."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._writer.flush()

    def close(self) -> None:
        self._file.close()
        self._writer.close()

    def _end_of(self, step: int) -> int:
        """Where the lines up to ``step`` end. A line that a kill cut short ends them too."""
        end = 0
        for line in self._file:
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n") or entry["step"] > step:
                    break
                self.last[entry["kind"]] = entry
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        return end


def _number(name: str, value: Any) -> int | float | None:
    """A Python number of the fewest digits that keep the value (float32 0.3 is 0.3, not 0.30000001192092896)."""
    array = np.asarray(value)
    if array.ndim != 0 or (array.dtype.kind not in "biuf" and "float" not in array.dtype.name):
        raise TypeError(f"metric {name!r} must be a number, but is {value!r}")
    if array.dtype.kind in "biu":
        return int(array)
    number = float(str(array)) if array.dtype == np.float32 else float(array)
    return number if math.isfinite(number) else None
