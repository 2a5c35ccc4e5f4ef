"""Elements kept as they are, so that what comes before is computed once."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines import rows as rows_lib
from tftoolkit.pipelines.bad_examples import Skipping, names
from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.ordering import Select
from tftoolkit.pipelines.plan import Plan
from tftoolkit.pipelines.rows import Rows
from tftoolkit.pipelines.scan import scan
from tftoolkit.pipelines.sources.source import Source, Spec
from tftoolkit.pipelines.sources.tfrecord_source import tfrecord
from tftoolkit.pipelines.stages import Stage, Where

# A feature of what is kept: the number that an element's random keys are made of.
_IDENTITY = "__identity__"


@dataclasses.dataclass(frozen=True, eq=False)
class Cached(Stage):
    """Stands for the stages before the cache, so that it changes nothing in the stream nor in its states."""

    labels: tuple[str, ...]
    functions: int

    def build(self, rows: Rows, identity: Where, context: Any) -> tuple[Rows, Where]:
        return {name: rows[name] for name in self.element_spec}, Where(identity.epoch, rows[_IDENTITY])

    @property
    def label(self) -> str:
        return ", ".join((*self.labels, "cache"))

    @property
    def map_functions(self) -> int:
        return self.functions


class _Elements:
    """The elements of a plan with their identity, as a source."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.element_spec: Spec = {**plan.element_spec, _IDENTITY: tf.TensorSpec([], tf.int64)}

    def __len__(self) -> int:
        return self._plan.length

    def fetch(self, indices: tf.Tensor) -> Rows:
        rows, identity = self._plan.load_elements(Where(tf.constant(0, tf.int64), indices))
        return {**rows, _IDENTITY: identity.index}

    def fingerprint(self) -> dict[str, Any]:
        stages = [stage.label for stage in self._plan.stages]
        return {"kind": "cache", "source": self._plan.source.fingerprint(), "stages": stages}

    def describe(self, index: int) -> str:
        return ", ".join(names(self._plan, Where(tf.constant(0, tf.int64), tf.constant([index], tf.int64))))


class _Kept:
    """A source that is known by another name: that of the source behind the cache."""

    def __init__(self, source: Source, fingerprint: dict[str, Any]) -> None:
        self.element_spec, self.fetch, self.describe = source.element_spec, source.fetch, source.describe
        self._length, self._fingerprint = len(source), fingerprint

    def __len__(self) -> int:
        return self._length

    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint


class _InMemory(_Elements):
    def __init__(self, plan: Plan, skipping: Skipping | None) -> None:
        super().__init__(plan)
        parts = list(scan(plan, "cache", lambda rows, identity: {**rows, _IDENTITY: identity}, skipping))
        self._elements = np.concatenate([numbers for numbers, _ in parts])
        with tf.device("CPU:0"):
            self._rows = rows_lib.concat([rows for _, rows in parts])

    def __len__(self) -> int:
        return len(self._elements)

    def fetch(self, indices: tf.Tensor) -> Rows:
        return rows_lib.gather(self._rows, indices)

    def describe(self, index: int) -> str:
        return super().describe(int(self._elements[index]))


def cached(plan: Plan, directory: str | os.PathLike[str] | None, skipping: Skipping | None) -> Plan:
    """``plan`` with its stages done already; see ``Pipeline.cache``."""
    kept = _on_disk(plan, Path(directory), skipping) if directory is not None else _InMemory(plan, skipping)
    source = _Kept(kept, plan.source.fingerprint())
    if not len(source):
        raise ValueError("cache: none of the examples can be read")
    labels = tuple(stage.label for stage in plan.stages)
    stage = Cached(plan.element_spec, len(source), labels, sum(stage.map_functions for stage in plan.stages))
    return dataclasses.replace(plan, source=source, stages=(stage,))


def _on_disk(plan: Plan, directory: Path, skipping: Skipping | None) -> Source:
    from tftoolkit.pipelines.writing import write  # which needs Pipeline

    told = directory / "elements.features.json"
    origin = _Elements(plan).fingerprint()
    if not told.exists():
        if skipping:
            parts = scan(plan, "looking for bad examples", lambda _, identity: identity, skipping)
            good = np.concatenate([elements for elements, _ in parts])
            select = Select(plan.element_spec, len(good), "readable", good)
            plan = dataclasses.replace(plan, stages=(*plan.stages, select))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write(_Elements(plan), directory / "elements")
            stored = json.loads(told.read_text())
            told.write_text(json.dumps({**stored, "origin": origin}))
        except OSError as error:
            raise SourceError(f"cache: {error}") from error
    try:
        known = json.loads(told.read_text())
        files = [directory / name for name in known["files"]]
        same = known["origin"] == json.loads(json.dumps(origin))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"cache: {told} cannot be read ({error}); delete the folder {directory}") from None
    if not same:
        raise SourceError(
            f"cache: {directory} holds what was made of another source or by other stages ({known['origin']}, and here "
            f"it is {origin}); delete it, or give another folder"
        )
    return tfrecord(files, "stored")
