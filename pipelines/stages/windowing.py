"""Windows of consecutive elements."""

import dataclasses
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.plan.bad_examples import Skipping
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Stage, Where
from tftoolkit.pipelines.sources.rows import is_dense
from tftoolkit.pipelines.stages.filtering import readable


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


def windowed(plan: Plan, skipping: Skipping | None, size: int, shift: int | None) -> Plan:
    """See ``Pipeline.window``."""
    need_elements(plan, "window")
    size = integer("size", size, 1)
    shift = size if shift is None else integer("shift", shift, 1)
    if skipping:
        plan = readable(plan, "window", skipping)
    if size > plan.length:
        raise ValueError(f"size={size}: larger than an epoch, which has {plan.length} elements")
    loose = [name for name, spec in plan.element_spec.items() if not is_dense(spec)]
    if loose:
        raise ValueError(f"window: the elements' {', '.join(map(repr, loose))} differ in shape and cannot be stacked")
    spec = {name: tf.TensorSpec([size, *s.shape], s.dtype) for name, s in plan.element_spec.items()}
    return plan.then(Window(spec, (plan.length - size) // shift + 1, size, shift))
