"""Stages that need a pass over all elements before the first batch."""

import dataclasses
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines import bucketing, caching, packing
from tftoolkit.pipelines.bad_examples import Skipping
from tftoolkit.pipelines.batching import Padding
from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.mapping import name_of, refuse_stateful_random
from tftoolkit.pipelines.ordering import Select
from tftoolkit.pipelines.plan import Plan
from tftoolkit.pipelines.rows import Rows, concat, is_ragged, map_rows
from tftoolkit.pipelines.scan import lengths_of, scan
from tftoolkit.pipelines.sources.source import Example
from tftoolkit.pipelines.stages import Stage


def filtered(
    plan: Plan,
    predicate: Callable[[Example], tf.Tensor],
    file: str | os.PathLike[str] | None,
    skipping: Skipping | None,
) -> Stage:
    """See ``Pipeline.filter``."""
    _need_fixed(plan, "filter")
    graph = _traced_predicate(plan, predicate)
    name = name_of(predicate)
    about = json.dumps({"predicate": name, **_identity(plan)}, sort_keys=True)
    kept = _read_selection(file, about) if file else None
    if kept is None:
        spec = {"keep": tf.TensorSpec([], tf.bool)}

        def keep(rows: Rows, _: tf.Tensor) -> tf.Tensor:
            return map_rows(lambda row, _: {"keep": graph(row)}, rows, [], plan.element_spec, spec)["keep"]

        kept = np.concatenate(
            [elements[mask.numpy()] for elements, mask in scan(plan, f"filter {name}", keep, skipping)]
        )
        if file:
            _write_selection(Path(file), about, kept)
    if not len(kept):
        raise ValueError(f"filter: {name} is true for none of the {plan.length} examples")
    return Select(plan.element_spec, len(kept), name, kept)


def packed(
    plan: Plan, size: int, features: Sequence[str], padding_value: Any, order: Any, skipping: Skipping | None
) -> Stage:
    """See ``Pipeline.pack``."""
    _need_fixed(plan, "pack")
    if not features:
        raise ValueError("features: name at least one feature to pack")
    for name in features:
        spec = _feature(plan, "features", name)
        if not is_ragged(spec):
            raise ValueError(
                f"features: {name!r} has the shape {spec.shape}; pack needs one of different lengths, [None, …]"
            )
        try:
            tf.constant(padding_value, spec.dtype)
        except (TypeError, ValueError):
            raise TypeError(f"padding_value={padding_value!r}: no {spec.dtype.name}, as {name!r} needs") from None
    elements, lengths = lengths_of(plan, features[0], skipping)
    for name in features[1:]:
        other = lengths_of(plan, name, skipping)[1]
        if not np.array_equal(other, lengths):
            first = int(np.flatnonzero(other != lengths)[0])
            raise ValueError(
                f"features: {features[0]!r} and {name!r} differ in length, first in example {elements[first]} "
                f"({lengths[first]} and {other[first]})"
            )
    if not lengths.any():
        raise ValueError(f"features: {features[0]!r} is empty in every example")
    made = packing.plan_packing(lengths, size)
    made = made._replace(piece_sequence=elements[made.piece_sequence])
    spec = {
        name: tf.TensorSpec([size, *plan.element_spec[name].shape[1:]], plan.element_spec[name].dtype)
        for name in features
    }
    spec |= {name: tf.TensorSpec([size], tf.int32) for name in (packing.SEGMENT_IDS, packing.POSITIONS)}
    return packing.Pack(spec, made.windows, tuple(features), size, padding_value, order, made, first=not plan.stages)


def bucketed(
    plan: Plan,
    batch_size: int | Sequence[int],
    boundaries: Sequence[int],
    feature: str,
    drop_remainder: bool,
    padding: Padding,
    to_boundary: bool,
    order: Any,
    skipping: Skipping | None,
) -> bucketing.Buckets:
    """See ``Pipeline.bucket``."""
    _need_fixed(plan, "bucket")
    limits = [int(boundary) for boundary in boundaries]
    if not limits or limits[0] < 0 or any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"boundaries={list(boundaries)}: must be ascending lengths, at least one")
    sizes = [int(size) for size in batch_size] if isinstance(batch_size, Sequence) else [int(batch_size)] * len(limits)
    if len(sizes) != len(limits) or min(sizes) < 1:
        raise ValueError(f"batch_size={batch_size!r}: must be one number ≥ 1, or one for each of {len(limits)} buckets")
    spec = _feature(plan, "feature", feature)
    if not spec.shape.rank or spec.shape[0] is not None:
        raise ValueError(
            f"feature={feature!r}: has the shape {spec.shape}; bucket needs one of different lengths, [None, …]"
        )
    elements, lengths = lengths_of(plan, feature, skipping)
    if len(lengths) and lengths.max() > limits[-1]:
        worst = int(elements[lengths.argmax()])
        raise ValueError(
            f"boundaries: the last one is {limits[-1]}, but example {worst} has the length {lengths.max()}"
        )
    members, counts, bucket_of, first_of = bucketing.assign(lengths, limits, sizes, drop_remainder)
    if not len(bucket_of):
        raise ValueError(f"batch_size={batch_size!r}: with drop_remainder=True no batch is left")
    if to_boundary:
        padding = dataclasses.replace(padding, sizes={feature: (None, *spec.shape[1:])})
    return bucketing.Buckets(
        feature, tuple(limits), tuple(sizes), bool(drop_remainder), padding, bool(to_boundary), order,
        elements[members], counts, bucket_of, first_of,
    )  # fmt: skip


def cached(plan: Plan, skipping: Skipping | None) -> Plan:
    """See ``Pipeline.cache``."""
    _need_fixed(plan, "cache")
    parts = list(scan(plan, "cache", lambda rows, identity: (rows, identity), skipping))
    elements = np.concatenate([numbers for numbers, _ in parts])
    if not len(elements):
        raise ValueError("cache: none of the examples can be read")
    with tf.device("CPU:0"):
        rows = concat([rows for _, (rows, _) in parts])
    identity = np.concatenate([identity.numpy() for _, (_, identity) in parts])
    return caching.replaced(plan, caching.MemorySource(plan, rows, elements), identity)


def _need_fixed(plan: Plan, stage: str) -> None:
    changing = [one.label for one in plan.stages if one.varies] + (["shuffle"] if plan.source_shuffled else [])
    if changing:
        raise ValueError(
            f"{stage}: its plan is made once for all epochs, but what comes before differs from epoch to epoch "
            f"({', '.join(changing)}); put .{stage}(…) before that"
        )


def _feature(plan: Plan, argument: str, name: str) -> tf.TensorSpec:
    if name not in plan.element_spec:
        raise ValueError(f"{argument}: there is no feature {name!r}, only {', '.join(map(repr, plan.element_spec))}")
    return plan.element_spec[name]


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


def _read_selection(file: str | os.PathLike[str], about: str) -> np.ndarray | None:
    try:
        with np.load(file) as stored:
            kept: np.ndarray = stored["kept"]
            return kept if str(stored["about"]) == about and kept.dtype == np.int64 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"plan={os.fspath(file)!r}: cannot be read ({error}); delete it") from None


def _write_selection(file: Path, about: str, kept: np.ndarray) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}.npz")
    try:
        np.savez(part, about=about, kept=kept)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"plan={str(file)!r}: cannot be written: {error}") from None
