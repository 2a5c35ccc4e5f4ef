"""From elements to batches: how those of a plan are grouped, shared among workers and stacked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.plan.bad_examples import Skipping
from tftoolkit.pipelines.plan.batching import Batch, Batching, checked_padding
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.sources.continued_rows import check_rows_go_on
from tftoolkit.pipelines.sources.source import Spec


def need_elements(plan: Plan, stage: str) -> None:
    """Raises ValueError if the elements are batched already, so that ``stage`` comes too late."""
    if plan.batching:
        raise ValueError(f"{stage}: the examples are batched already; put .{stage}(…) before .batch(…)")


def batching_of(plan: Plan) -> Batching:
    """How ``plan`` makes batches. Raises ValueError if it makes none yet."""
    if not plan.batching:
        raise ValueError("the pipeline has no batches yet: call .batch(batch_size)")
    return plan.batching


def batched(
    plan: Plan,
    batch_size: int,
    drop_remainder: bool,
    padded: bool,
    pad_to: Mapping[str, Any] | None,
    padding_values: Mapping[str, Any] | None,
) -> Plan:
    """See ``Pipeline.batch``."""
    need_elements(plan, "batch")
    size = integer("batch_size", batch_size, 1)
    torn = [stage.label for stage in plan.stages if not stage.keeps_order]
    check_rows_go_on(plan.source, torn, size)
    if drop_remainder and size > plan.length:
        raise ValueError(
            f"batch_size={size}: with drop_remainder=True no batch is left, as there are only {plan.length} examples"
        )
    padding = checked_padding(plan.element_spec, padded, pad_to, padding_values)
    return dataclasses.replace(plan, batching=Batch(plan.length, size, bool(drop_remainder), padding))


def sharded(plan: Plan, index: int, count: int) -> Plan:
    """See ``Pipeline.shard``."""
    count = integer("count", count, 1)
    index = integer("index", index, 0)
    if index >= count:
        raise ValueError(f"index={index}: must be below count={count}")
    if plan.shard_count > 1:
        raise ValueError("shard: the pipeline is sharded already")
    if not plan.batching:
        raise ValueError("shard: call .batch(global_batch_size) first")
    if count > plan.batching.largest:
        raise ValueError(f"count={count}: more workers than rows in a batch of {plan.batching.largest}")
    return dataclasses.replace(plan, shard_index=index, shard_count=count)


def stacked(plan: Plan, skipping: Skipping | None, batch_spec: Spec, count: int) -> Plan:
    """See ``Pipeline.stack``; ``batch_spec`` is that of a batch of ``plan``."""
    if plan.stacked:
        raise ValueError("stack: the pipeline is stacked already")
    varied = [name for name, spec in batch_spec.items() if not _has_static_shape(spec)]
    if varied and skipping:
        raise ValueError(
            'stack: with on_error="skip" a batch may come with fewer rows, and batches of different size cannot be '
            'stacked; use on_error="raise", or have the runner make one step per call'
        )
    if varied:
        raise ValueError(
            f"stack: batches must all have one shape, but that of {', '.join(map(repr, varied))} differs; use "
            "drop_remainder=True, and pad to a fixed size"
        )
    return dataclasses.replace(plan, stacked=integer("count", count, 1))


def _has_static_shape(spec: Any) -> bool:
    return isinstance(spec, tf.TensorSpec) and bool(spec.shape.is_fully_defined())
