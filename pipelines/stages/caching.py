"""Elements kept as they are, so that what comes before is computed once."""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.plan.bad_examples import Skipping, names, numbers_of
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.scan import as_pairs, need_fixed, scan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.sources import rows as rows_lib
from tftoolkit.pipelines.sources.continued_rows import check_rows_go_on
from tftoolkit.pipelines.sources.record_files import write_records
from tftoolkit.pipelines.sources.rows import Rows
from tftoolkit.pipelines.sources.source import Source, Spec
from tftoolkit.pipelines.sources.tfrecord_source import tfrecord
from tftoolkit.pipelines.stages.filtering import with_only
from tftoolkit.pipelines.stages.ordering import Repeat

# A feature of what is kept, int64[2]: the epoch and the number that an element's random keys are made of.
_IDENTITY = "__identity__"


@dataclasses.dataclass(frozen=True, eq=False)
class Cached(Stage):
    """Stands for the stages before the cache, so that it changes nothing in the stream."""

    stages: tuple[Stage, ...]

    def build(self, rows: Rows, identity: Where, context: Any) -> tuple[Rows, Where]:
        epoch, index = tf.unstack(rows[_IDENTITY], axis=1)
        identity = Where(identity.epoch * epochs_in_one(self.stages) + epoch, index)
        return {name: rows[name] for name in self.element_spec}, identity

    @property
    def label(self) -> str:
        return ", ".join([*(stage.label for stage in self.stages), "cache"])

    @property
    def map_functions(self) -> int:
        return sum(stage.map_functions for stage in self.stages)

    @property
    def orders(self) -> int:
        return sum(stage.orders for stage in self.stages)


def epochs_in_one(stages: Sequence[Stage]) -> int:
    """How many epochs of the source make one of ``stages``."""
    counts = (
        stage.count if isinstance(stage, Repeat) else epochs_in_one(stage.stages) if isinstance(stage, Cached) else 1
        for stage in stages
    )
    return math.prod(counts)


class _Elements:
    """The elements of a plan with their identity, as a source."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.element_spec: Spec = {**plan.element_spec, _IDENTITY: tf.TensorSpec([2], tf.int64)}

    def __len__(self) -> int:
        return self._plan.length

    def fetch(self, indices: tf.Tensor) -> Rows:
        rows, identity = self._plan.load_elements(Where(tf.constant(0, tf.int64), indices))
        return {**rows, _IDENTITY: as_pairs(identity)}

    def fingerprint(self) -> dict[str, Any]:
        stages = [stage.label for stage in self._plan.stages]
        return {"kind": "cache", "source": self._plan.source.fingerprint(), "stages": stages}

    def describe(self, index: int) -> str:
        return names(self._plan, Where.one(index))


class _InMemory(_Elements):
    def __init__(self, plan: Plan, rows: Rows) -> None:
        super().__init__(plan)
        self._rows = rows

    def fetch(self, indices: tf.Tensor) -> Rows:
        return rows_lib.gather(self._rows, indices)


class _Kept:
    """The kept elements of a plan as a source, which is known by the name of the one behind the cache."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self.element_spec, self.fetch, self.describe = source.element_spec, source.fetch, source.describe
        self._plan = plan

    def __len__(self) -> int:
        return self._plan.length

    def fingerprint(self) -> dict[str, Any]:
        return self._plan.source.fingerprint()

    def examples_of(self, index: int) -> list[int]:
        """The numbers, in the source behind the cache, of what element ``index`` is made of."""
        return numbers_of(self._plan, Where.one(index))


def cached(plan: Plan, skipping: Skipping | None, directory: str | os.PathLike[str] | None) -> Plan:
    """``plan`` with its stages done already; see ``Pipeline.cache``."""
    need_elements(plan, "cache")
    check_rows_go_on(plan.source, ["cache"])
    need_fixed(plan, "cache")
    made = _in_memory(plan, skipping) if directory is None else _on_disk(plan, Path(directory), skipping)
    stage = Cached(plan.element_spec, len(made), made._plan.stages)
    return dataclasses.replace(plan, source=made, stages=(stage,))


def _in_memory(plan: Plan, skipping: Skipping | None) -> _Kept:
    parts = list(scan(plan, "cache", lambda rows, identity: {**rows, _IDENTITY: identity}, skipping))
    plan = with_only(plan, "cache", np.concatenate([elements for elements, _ in parts]))
    with tf.device("CPU:0"):
        rows = rows_lib.concat([rows for _, rows in parts])
    return _Kept(_InMemory(plan, rows), plan)


def _on_disk(plan: Plan, directory: Path, skipping: Skipping | None) -> _Kept:
    told = directory / "elements.features.json"
    origin = json.loads(json.dumps({**_Elements(plan).fingerprint(), "on_error": "skip" if skipping else "raise"}))
    if not told.exists():
        _write(plan, directory, told, origin, skipping)
    try:
        known = json.loads(told.read_text())
        files, made_of = [directory / name for name in known["files"]], known["origin"]
        if made_of == origin:
            plan = with_only(plan, "cache", np.setdiff1d(np.arange(plan.length), np.array(known["left out"], np.int64)))
            if skipping:
                skipping.add_json(known["skipped"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"cache: {told} cannot be read ({error}); delete the folder {directory}", code="source-kept"
        ) from None
    if made_of != origin:
        raise SourceError(
            f"cache: {directory} holds what was made of another source or by other stages ({made_of}, and here it is "
            f"{origin}); delete it, or give another folder",
            code="source-kept",
        )
    source = tfrecord(files, "stored")
    if len(source) != plan.length:
        raise SourceError(
            f"cache: {directory} has {len(source)} elements instead of {plan.length}; delete it", code="source-kept"
        )
    return _Kept(source, plan)


def _write(plan: Plan, directory: Path, told: Path, origin: dict[str, Any], skipping: Skipping | None) -> None:
    elements = np.arange(plan.length)
    if skipping:
        parts = scan(plan, "looking for bad examples", lambda _, identity: identity, skipping)
        elements = np.concatenate([elements for elements, _ in parts])
    about = {
        "origin": origin,
        "left out": np.setdiff1d(np.arange(plan.length), elements).tolist(),
        "skipped": skipping.to_json() if skipping else "[]",
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_records(_Elements(with_only(plan, "cache", elements)), directory / "elements")
        told.write_text(json.dumps({**json.loads(told.read_text()), **about}))
    except OSError as error:
        raise SourceError(f"cache: {error}", code="source-unwritable") from error
