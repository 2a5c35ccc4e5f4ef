"""Where the time of a pipeline goes."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.stages.caching import Cached
from tftoolkit.pipelines.stages.mapping import Map


@dataclasses.dataclass(frozen=True)
class StageTime:
    """What one stage took, run alone and without parallelism."""

    name: str
    seconds: float
    """Per batch, the median."""
    bytes: float
    """Of its result, per batch."""


@dataclasses.dataclass(frozen=True)
class Profile:
    """What ``Pipeline.profile`` measured; ``str(profile)`` is a table."""

    stages: tuple[StageTime, ...]
    rows: float
    """Rows per batch."""
    delivered: float
    """Seconds per batch of the whole data set, with all of its parallelism."""

    @property
    def slowest(self) -> str:
        """The name of the stage that takes the most time."""
        return max(self.stages, key=lambda stage: stage.seconds).name

    def __str__(self) -> str:
        total = sum(stage.seconds for stage in self.stages)
        width = max(len("all stages"), *(len(stage.name) for stage in self.stages))
        lines = [f"{'stage':<{width}}  {'ms/batch':>9}  {'share':>6}  {'records/s':>11}  {'MB/batch':>9}"]
        for stage in self.stages:
            mark = "  <- slowest" if stage.name == self.slowest else ""
            lines.append(f"{stage.name:<{width}}  {self._figures(stage.seconds, total, stage.bytes)}{mark}")
        lines.append(f"{'all stages':<{width}}  {self._figures(total, total, self.stages[-1].bytes)}")
        lines.append(
            f"As a data set, with its threads: {self.delivered * 1e3:.3f} ms/batch, "
            f"{self.rows / self.delivered:,.0f} records/s, {1 / self.delivered:,.1f} batches/s"
        )
        return "\n".join(lines)

    def _figures(self, seconds: float, total: float, size: float) -> str:
        rate = self.rows / seconds if seconds else float("inf")
        return f"{seconds * 1e3:9.3f}  {seconds / total:6.1%}  {rate:11,.0f}  {size / 1e6:9.3f}"


def profile(plan: Plan, dataset: tf.data.Dataset, batches: int) -> Profile:
    """See ``Pipeline.profile``; ``dataset`` has more than ``batches`` batches."""
    parts = _Parts(plan)
    parts.run(tf.constant(0, tf.int64))  # traces the functions
    runs, rows = [], 0
    for number in range(batches):
        runs.append(
            [(name, duration, _bytes(result)) for name, duration, result in parts.run(tf.constant(number, tf.int64))]
        )
        rows += int(tf.size(parts.elements))
    stages = []
    for columns in zip(*runs, strict=True):
        names, seconds, sizes = zip(*columns, strict=True)
        # The median, since a function is traced anew when it meets another shape.
        stages.append(StageTime(_shortened(names[0]), statistics.median(seconds), statistics.mean(sizes)))
    return Profile(tuple(stages), rows / batches, _delivery(dataset, batches) / max(plan.stacked, 1))


def _shortened(label: str) -> str:
    return label if len(label) <= 48 else f"{label[:47]}…"


class _Parts:
    """The parts of ``Plan.load``, each as a function of its own, so that each can be timed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.elements: Any = None
        self._functions: dict[Any, Any] = {}
        self._durations: list[tuple[str, float, Any]] = []

    def run(self, number: tf.Tensor) -> list[tuple[str, float, Any]]:
        """(part, seconds, result) of all parts for one batch."""
        plan, self._durations = self._plan, []
        assert plan.batching is not None
        kept = bool(plan.stages) and isinstance(plan.stages[0], Cached)
        kind = "cache" if kept else plan.source.fingerprint().get("kind", "source")
        self.elements, where, contexts = self._order(number)
        if plan.stages:
            first = plan.stages[0]
            rows = self._time(f"read {kind}", lambda i, c: first.fetch(plan.source, i, c), where.index, contexts[0])
        else:
            rows = self._time(f"read {kind}", plan.source.fetch, where.index)
        for stage, context in zip(plan.stages, contexts, strict=True):
            for part in stage.parts() if isinstance(stage, Map) else [stage]:
                if isinstance(stage, Map) or type(part).build is not Stage.build:
                    # A cache's own label names the stages behind it, which cost nothing any more.
                    name = "cache" if isinstance(part, Cached) else part.label
                    rows, where = self._time(name, part.build, rows, where, context)
        rows = self._time(plan.batching.label, plan.padded, number, rows, self.elements)
        if plan.paired:
            paired = plan.paired
            neighbours = {name: tf.roll(feature, -1, axis=0) for name, feature in rows.items()}
            self._time(paired.label, lambda r, n, w: paired.apply(r, n, w, plan.seed), rows, neighbours, where)
        return self._durations

    def _order(self, number: tf.Tensor) -> Any:
        located = self._time("order", self._locate, number)
        if block := self._plan.block_size:  # then a batch has its share in the time of a block
            self._time("order", self._plan.locate_block, number + tf.range(block, dtype=tf.int64))
            name, seconds, result = self._durations.pop()
            self._durations[0] = (name, seconds / block, [part[0] for part in result])
        return located

    def _locate(self, number: tf.Tensor) -> Any:
        epoch, elements = self._plan.elements_of(number)
        mine = elements[self._plan.shard_index :: self._plan.shard_count]
        return mine, *self._plan.locate(Where(epoch, mine))

    def _time(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        key = (name, len(self._durations))
        if key not in self._functions:
            self._functions[key] = tf.function(function, autograph=False, reduce_retracing=True)
        begin = time.perf_counter()
        result = self._functions[key](*arguments)
        self._durations.append((name, time.perf_counter() - begin, result))
        return result


def _bytes(result: Any) -> int:
    """Of all tensors in ``result``; strings count their characters."""
    total = 0
    for tensor in tf.nest.flatten(result, expand_composites=True):
        if isinstance(tensor, tf.Tensor):
            strings = tensor.dtype == tf.string
            total += (
                int(tf.reduce_sum(tf.strings.length(tensor))) if strings else int(tf.size(tensor)) * tensor.dtype.size
            )
    return total


def _delivery(dataset: tf.data.Dataset, batches: int) -> float:
    """Seconds per element."""
    iterator = iter(dataset)
    next(iterator)
    begin = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return (time.perf_counter() - begin) / batches
