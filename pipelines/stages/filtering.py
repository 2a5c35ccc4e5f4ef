"""A selection of the elements: what a filter keeps, or what can be read."""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.plan.bad_examples import Skipping
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.scan import need_fixed, scan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.sources.rows import Rows, map_rows
from tftoolkit.pipelines.sources.source import Example
from tftoolkit.pipelines.stages.mapping import name_of, refuse_stateful_random


@dataclasses.dataclass(frozen=True, eq=False)
class Select(Stage):
    """The elements with the numbers ``indices``: what a filter has kept, or what can be read."""

    name: str  # of what has chosen them
    indices: np.ndarray  # int64[length]

    def locate(self, where: Where) -> tuple[Where, Any]:
        return Where(where.epoch, tf.gather(self._table, where.index)), None

    @functools.cached_property
    def _table(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):  # outside of the graph, which would hold a copy otherwise
            return tf.constant(self.indices, tf.int64)

    @property
    def keeps_order(self) -> bool:
        return False

    @functools.cached_property
    def label(self) -> str:
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()[:12]
        return f"{self.name} (keeps {self.length}, {digest})"


def filtered(
    plan: Plan,
    skipping: Skipping | None,
    predicate: Callable[[Example], tf.Tensor],
    file: str | os.PathLike[str] | None,
) -> Plan:
    """See ``Pipeline.filter``."""
    need_elements(plan, "filter")
    need_fixed(plan, "filter")
    graph = _traced_predicate(plan, predicate)
    name = name_of(predicate)
    on_error = "skip" if skipping else "raise"
    about = json.dumps({"predicate": name, "on_error": on_error, **_identity(plan)}, sort_keys=True)
    kept = _read_selection(file, about, skipping) if file else None
    if kept is None:
        spec = {"keep": tf.TensorSpec([], tf.bool)}

        def keep(rows: Rows, _: tf.Tensor) -> tf.Tensor:
            return map_rows(lambda row, _: {"keep": graph(row)}, rows, [], plan.element_spec, spec)["keep"]

        kept = np.concatenate(
            [elements[mask.numpy()] for elements, mask in scan(plan, f"filter {name}", keep, skipping)]
        )
        if file:
            _write_selection(Path(file), about, kept, skipping)
    if not len(kept):
        raise ValueError(f"filter: {name} is true for none of the {plan.length} examples")
    return plan.then(Select(plan.element_spec, len(kept), f"filter {name}", kept))


def readable(plan: Plan, stage: str, skipping: Skipping) -> Plan:
    """``plan`` without the elements that cannot be read."""
    need_fixed(plan, stage)
    parts = scan(plan, f"reading for {stage}", lambda _, identity: identity, skipping)
    return with_only(plan, stage, np.concatenate([elements for elements, _ in parts]))


def with_only(plan: Plan, stage: str, elements: np.ndarray) -> Plan:
    """``plan`` with nothing but these of its elements, the readable ones."""
    if not len(elements):
        raise ValueError(f"{stage}: none of the {plan.length} examples can be read")
    if len(elements) == plan.length:
        return plan
    return plan.then(Select(plan.element_spec, len(elements), "readable", elements))


def _identity(plan: Plan) -> Mapping[str, Any]:
    return {"source": plan.source.fingerprint(), "stages": [stage.label for stage in plan.stages]}


def _traced_predicate(plan: Plan, predicate: Callable[[Example], tf.Tensor]) -> Any:
    if not callable(predicate):
        raise TypeError(f"filter: expected a function of an example, got {predicate!r}")
    graph = tf.function(predicate)
    traced = graph.get_concrete_function(plan.element_spec)
    refuse_stateful_random(name_of(predicate), traced.graph.as_graph_def())
    result = traced.structured_outputs
    if not isinstance(result, tf.Tensor | tf.TensorSpec) or result.dtype != tf.bool or result.shape.rank != 0:
        raise TypeError(f"filter: {name_of(predicate)} must return a bool scalar, but returns {result}")
    return graph


def _read_selection(file: str | os.PathLike[str], about: str, skipping: Skipping | None) -> np.ndarray | None:
    try:
        with np.load(file) as stored:
            kept: np.ndarray = stored["kept"]
            if str(stored["about"]) != about:
                return None
            skipped = str(stored["skipped"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"plan={os.fspath(file)!r}: cannot be read ({error}); delete it", code="source-kept"
        ) from None
    if skipping:
        skipping.add_json(skipped)
    return kept


def _write_selection(file: Path, about: str, kept: np.ndarray, skipping: Skipping | None) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.npz")
    try:
        np.savez(part, about=about, kept=kept, skipped=skipping.to_json() if skipping else "[]")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"plan={str(file)!r}: cannot be written: {error}", code="source-unwritable") from None
