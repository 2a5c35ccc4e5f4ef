"""Shuffle, take and repeat: stages that decide which elements come, and in which order, and touch none of them."""

import dataclasses
from collections.abc import Hashable
from typing import Any

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.keys import stream_state
from tftoolkit.pipelines.permutation import MAX_SIZE, permute
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.stages.mapping import Map


@dataclasses.dataclass(frozen=True, eq=False)
class Shuffle(Stage):
    """Every epoch in an order of its own: a seeded permutation, evaluated index by index."""

    seed: int
    stream: int

    def locate(self, where: Where) -> tuple[Where, Any]:
        state = stream_state(self.seed, where.epoch, self.stream)
        return Where(where.epoch, permute(where.index, self.length, state)), None

    @property
    def label(self) -> str:
        return "shuffle"

    @property
    def key(self) -> Hashable:
        return Shuffle, self.length, self.seed, self.stream

    @property
    def shuffles(self) -> bool:
        return True

    @property
    def varies(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True, eq=False)
class Take(Stage):
    """The first ``length`` elements of each epoch."""

    @property
    def label(self) -> str:
        return f"take({self.length})"

    @property
    def key(self) -> Hashable:
        return Take, self.length


@dataclasses.dataclass(frozen=True, eq=False)
class Repeat(Stage):
    """``count`` epochs of the stage before make one."""

    count: int

    def locate(self, where: Where) -> tuple[Where, Any]:
        inner_length = self.length // self.count
        return Where(where.epoch * self.count + where.index // inner_length, where.index % inner_length), None

    @property
    def label(self) -> str:
        return f"repeat({self.count})"

    @property
    def key(self) -> Hashable:
        return Repeat, self.length, self.count


def shuffled(plan: Plan) -> Plan:
    """See ``Pipeline.shuffle``."""
    need_elements(plan, "shuffle")
    if plan.shuffled:
        raise ValueError("shuffle: the pipeline is shuffled already")
    if hasattr(plan.source, "order"):
        if any(not isinstance(stage, Map) for stage in plan.stages):
            raise ValueError("shuffle: this source shuffles itself; put .shuffle() right after it")
        return dataclasses.replace(plan, source_shuffled=True)
    return plan.then(Shuffle(plan.element_spec, plan.length, plan.seed, _new_order(plan)))


def taken(plan: Plan, count: int) -> Plan:
    """See ``Pipeline.take``."""
    need_elements(plan, "take")
    count = integer("count", count, 1)
    if count > plan.length:
        raise ValueError(f"count={count}: there are only {plan.length} elements to take")
    return plan.then(Take(plan.element_spec, count))


def repeated(plan: Plan, count: int) -> Plan:
    """See ``Pipeline.repeat``."""
    need_elements(plan, "repeat")
    count = integer("count", count, 1)
    if plan.length * count > MAX_SIZE:
        raise ValueError(f"count={count}: an epoch of {count} times {plan.length} elements is too long")
    return plan.then(Repeat(plan.element_spec, plan.length * count, count))


def without_shuffle(plan: Plan, stage: str) -> tuple[Plan, tuple[int, int] | None]:
    """``plan`` without its shuffle, and seed and number of the random stream for ``stage``, which shuffles instead."""
    if plan.source_shuffled:
        raise ValueError(f"{stage}: a shuffled mixture cannot be planned; put .shuffle() after .{stage}(…)")
    shuffles = [number for number, one in enumerate(plan.stages) if isinstance(one, Shuffle)]
    if not shuffles:
        return plan, None
    behind = plan.stages[shuffles[0] + 1 :]
    if any(not isinstance(one, Map) for one in behind):
        raise ValueError(f"{stage}: put .shuffle() right before it, with nothing but map stages in between")
    stages = (*plan.stages[: shuffles[0]], *behind)
    return dataclasses.replace(plan, stages=stages), (plan.seed, _new_order(plan))


def _new_order(plan: Plan) -> int:
    """Number of a random stream for a stage that changes the order; map stages have 1, 2, …"""
    return sum(stage.orders for stage in plan.stages) << 32
