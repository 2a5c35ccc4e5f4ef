"""Stages that need a pass over all elements before the first batch."""

import dataclasses
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer, integers, known, scalars_of
from tftoolkit.pipelines.errors import SourceError
from tftoolkit.pipelines.plan.bad_examples import Skipping, names
from tftoolkit.pipelines.plan.batching import Padding
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.scan import lengths_of, scan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.sources.rows import Rows, is_ragged, map_rows
from tftoolkit.pipelines.sources.source import Example
from tftoolkit.pipelines.stages import bucketing, packing
from tftoolkit.pipelines.stages.mapping import name_of, refuse_stateful_random
from tftoolkit.pipelines.stages.ordering import Select, with_only


def filtered(
    plan: Plan,
    predicate: Callable[[Example], tf.Tensor],
    file: str | os.PathLike[str] | None,
    skipping: Skipping | None,
) -> Stage:
    """See ``Pipeline.filter``."""
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
    return Select(plan.element_spec, len(kept), f"filter {name}", kept)


def readable(plan: Plan, stage: str, skipping: Skipping) -> Plan:
    """``plan`` without the elements that cannot be read."""
    need_fixed(plan, stage)
    parts = scan(plan, f"reading for {stage}", lambda _, identity: identity, skipping)
    return with_only(plan, stage, np.concatenate([elements for elements, _ in parts]))


def packed(
    plan: Plan,
    size: int,
    features: Sequence[str],
    padding_values: Mapping[str, Any] | None,
    order: Any,
    skipping: Skipping | None,
) -> Stage:
    """See ``Pipeline.pack``."""
    need_fixed(plan, "pack")
    if not features:
        raise ValueError("features: name at least one feature to pack")
    for name in features:
        spec = known("features", name, plan.element_spec)
        if not is_ragged(spec):
            raise ValueError(
                f"features: {name!r} has the shape {spec.shape}; pack needs one of different lengths, [None, …]"
            )
    packed_spec = {name: plan.element_spec[name] for name in features}
    fills = scalars_of("padding_values", padding_values, packed_spec)
    elements, lengths = lengths_of(plan, features[0], skipping)
    for name in features[1:]:
        other = lengths_of(plan, name, skipping)[1]
        if not np.array_equal(other, lengths):
            first = int(np.flatnonzero(other != lengths)[0])
            raise ValueError(
                f"features: {features[0]!r} and {name!r} differ in length, first in {_name(plan, elements[first])} "
                f"({lengths[first]} and {other[first]})"
            )
    if not lengths.any():
        raise ValueError(f"features: {features[0]!r} is empty in every example")
    made = packing.plan_packing(lengths, size)
    made = made._replace(piece_sequence=elements[made.piece_sequence])
    spec = {name: tf.TensorSpec([size, *one.shape[1:]], one.dtype) for name, one in packed_spec.items()}
    spec |= {name: tf.TensorSpec([size], tf.int32) for name in (packing.SEGMENT_IDS, packing.POSITIONS)}
    return packing.Pack(spec, made.windows, tuple(features), size, fills, order, made, first=not plan.stages)


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
    need_fixed(plan, "bucket")
    limits = integers("boundaries", boundaries, 0)
    if any(a >= b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"boundaries={limits}: must be ascending")
    if isinstance(batch_size, SupportsIndex):
        sizes = [integer("batch_size", batch_size, 1)] * len(limits)
    else:
        sizes = integers("batch_size", batch_size, 1)
    if len(sizes) != len(limits):
        raise ValueError(f"batch_size={sizes}: must be one number, or one for each of the {len(limits)} buckets")
    spec = known("feature", feature, plan.element_spec)
    if not spec.shape.rank or spec.shape[0] is not None:
        raise ValueError(
            f"feature={feature!r}: has the shape {spec.shape}; bucket needs one of different lengths, [None, …]"
        )
    elements, lengths = lengths_of(plan, feature, skipping)
    if len(lengths) and lengths.max() > limits[-1]:
        worst = _name(plan, elements[lengths.argmax()])
        raise ValueError(f"boundaries: the last one is {limits[-1]}, but {worst} has the length {lengths.max()}")
    members, counts, bucket_of, first_of = bucketing.assign(lengths, limits, sizes, drop_remainder)
    if not len(bucket_of):
        raise ValueError(f"batch_size={batch_size!r}: with drop_remainder=True no batch is left")
    if to_boundary:
        padding = dataclasses.replace(padding, sizes={feature: (None, *spec.shape[1:])})
    return bucketing.Buckets(
        feature, tuple(limits), tuple(sizes), bool(drop_remainder), padding, bool(to_boundary), order,
        elements[members], counts, bucket_of, first_of,
    )  # fmt: skip


def need_fixed(plan: Plan, stage: str) -> None:
    if hasattr(plan.source, "order"):
        raise ValueError(
            f"{stage}: its plan is made once for all epochs, but a mixture deals out other examples in each of them; "
            "use a source that is no mixture"
        )
    changing = [one.label for one in plan.stages if one.varies]
    if changing:
        raise ValueError(
            f"{stage}: its plan is made once for all epochs, but what comes before differs from epoch to epoch "
            f"({', '.join(changing)}); put .{stage}(…) before that"
        )


def _name(plan: Plan, element: int) -> str:
    return ", ".join(names(plan, Where(tf.constant(0, tf.int64), tf.constant([element], tf.int64))))


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
        raise SourceError(f"plan={os.fspath(file)!r}: cannot be read ({error}); delete it") from None
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
        raise SourceError(f"plan={str(file)!r}: cannot be written: {error}") from None
