"""The record of a run: ``metrics.jsonl`` and TensorBoard events."""

import contextlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.checkpoints.checkpoint_files import CheckpointError


class MetricsLog:
    """Writes ``metrics.jsonl`` and ``tensorboard/`` in a run folder.

    Each line of ``metrics.jsonl`` is an object ``{"kind": …, "step": finished steps, name: number, …}`` of kind
    "train", "eval" or "rollback". It holds nothing that depends on the clock, so that an interrupted and resumed run
    writes the same bytes as an undisturbed one; rates go to TensorBoard only. A number that isn't finite is null (JSON
    has no other word for it). A resumed run adds a TensorBoard file; steps that were repeated are in both.
    """

    def __init__(
        self,
        directory: Path,
        step: int,
        sinks: Sequence[Callable[[dict[str, Any]], None]] = (),
        *,
        writes: bool = True,
    ) -> None:
        """Open the record after ``step`` finished steps; what it says of later ones is dropped.

        Args:
            directory: the run folder.
            step: number of finished steps.
            sinks: functions that get each line, too, as a dict.
            writes: False: read what is there and keep what is added in memory, for workers beside the one that writes.
        """
        self.last: dict[str, dict[str, Any]] = {}
        self.evaluations: list[dict[str, Any]] = []
        self._sinks = tuple(sinks)
        self._path = directory / "metrics.jsonl"
        with self._clear_errors():
            self._file: BinaryIO = self._path.open("ab+") if writes else io.BytesIO(_bytes_of(self._path))
            self._writes = writes
            self.rewind(step)
            self._writer = (
                tf.summary.create_file_writer(str(directory / "tensorboard"))
                if writes
                else tf.summary.create_noop_writer()
            )

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line and the TensorBoard scalars ``<kind>/<name>``."""
        clash = {"kind", "step"} & metrics.keys()
        if clash:
            raise ValueError(f"a metric can't be called {sorted(clash)[0]!r}: metrics.jsonl uses that name itself")
        values = {name: _number(name, value) for name, value in metrics.items()}
        entry = {"kind": kind, "step": step, **values}
        with self._clear_errors():
            self._file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self._file.flush()  # to be seen now; what must survive a crash of the machine is synced by `flush`
        self._note(entry)
        for sink in self._sinks:
            sink(entry)
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
        with self._clear_errors():
            self._file.flush()
            if self._writes:
                os.fsync(self._file.fileno())
            self._writer.flush()

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after ``step``."""
        self._file.flush()
        self.last.clear()
        self.evaluations.clear()
        self._file.seek(0)
        self._file.truncate(self._end_of(step))

    def evaluation_of(self, step: int) -> dict[str, Any] | None:
        """The latest evaluation if it is that of ``step``."""
        return next((entry for entry in self.evaluations[-1:] if entry["step"] == step), None)

    @property
    def writer(self) -> tf.summary.SummaryWriter:
        """Of the TensorBoard file, for hooks."""
        return self._writer

    def close(self) -> None:
        # Lines since the last checkpoint: if there is no room for them, they will be written again anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"the metrics can't be written to {self._path.parent}: {error}. The checkpoints are untouched"
            ) from error

    def _note(self, entry: dict[str, Any]) -> None:
        self.last[entry["kind"]] = entry
        if entry["kind"] == "eval":
            self.evaluations.append(entry)

    def _end_of(self, step: int) -> int:
        """Where the lines up to ``step`` end. A line that a kill cut short ends them too."""
        end = 0
        for line in self._file:
            try:
                entry = json.loads(line)
                if not line.endswith(b"\n") or entry["step"] > step:
                    break
                self._note(entry)
            except (ValueError, KeyError, TypeError):
                break
            end += len(line)
        return end


def _bytes_of(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _number(name: str, value: Any) -> int | float | None:
    """A Python number of the fewest digits that keep the value (float32 0.3 is 0.3, not 0.30000001192092896)."""
    array = np.asarray(value)
    if array.ndim != 0 or (array.dtype.kind not in "biuf" and "float" not in array.dtype.name):
        raise TypeError(f"metric {name!r} must be a number, but is {value!r}")
    if array.dtype.kind in "biu":
        return int(array)
    number = float(str(array)) if array.dtype == np.float32 else float(array)
    return number if math.isfinite(number) else None
