"""Stages that decide which elements come, and in which order; none of them touches an element."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.keys import stream_state
from tftoolkit.pipelines.permutation import permute
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Stage, Where


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

    @functools.cached_property
    def label(self) -> str:
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()[:12]
        return f"{self.name} (keeps {self.length}, {digest})"


@dataclasses.dataclass(frozen=True, eq=False)
class Window(Stage):
    """``size`` consecutive elements each, stacked; a new one begins every ``shift`` elements."""

    size: int
    shift: int

    def locate(self, where: Where) -> tuple[Where, Any]:
        members = where.index[:, tf.newaxis] * self.shift + tf.range(self.size, dtype=tf.int64)
        epoch = where.epoch if where.epoch.shape.rank == 0 else tf.repeat(where.epoch, self.size)
        return Where(epoch, tf.reshape(members, [-1])), where

    def build(self, rows: Any, identity: Where, context: Where) -> tuple[Any, Where]:
        count = tf.size(context.index)
        windows = {name: tf.reshape(rows[name], [count, *spec.shape]) for name, spec in self.element_spec.items()}
        return windows, context

    @property
    def one_to_one(self) -> bool:
        return False

    @property
    def label(self) -> str:
        return f"window(size={self.size}, shift={self.shift})"


def with_only(plan: Plan, stage: str, elements: np.ndarray) -> Plan:
    """``plan`` with nothing but these of its elements, the readable ones."""
    if not len(elements):
        raise ValueError(f"{stage}: none of the {plan.length} examples can be read")
    if len(elements) == plan.length:
        return plan
    select = Select(plan.element_spec, len(elements), "readable", elements)
    return dataclasses.replace(plan, stages=(*plan.stages, select))
