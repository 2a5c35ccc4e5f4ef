"""Elements kept as they are, so that what comes before is computed once."""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines import rows as rows_lib
from tftoolkit.pipelines.bad_examples import names
from tftoolkit.pipelines.plan import Plan
from tftoolkit.pipelines.rows import Rows
from tftoolkit.pipelines.sources.source import Source, Spec
from tftoolkit.pipelines.stages import Stage, Where


class MemorySource:
    """The elements of a plan, in memory; known by the source that they were read from."""

    def __init__(self, plan: Plan, rows: Rows, elements: np.ndarray) -> None:
        self.element_spec: Spec = plan.element_spec
        self._plan, self._rows, self._elements = plan, rows, elements

    def __len__(self) -> int:
        return len(self._elements)

    def fetch(self, indices: tf.Tensor) -> Rows:
        return rows_lib.gather(self._rows, indices)

    def fingerprint(self) -> dict[str, Any]:
        return self._plan.source.fingerprint()

    def describe(self, index: int) -> str:
        zero = tf.constant(0, tf.int64)
        return ", ".join(names(self._plan, Where(zero, tf.constant([self._elements[index]], tf.int64))))


@dataclasses.dataclass(frozen=True, eq=False)
class Cached(Stage):
    """Stands for the stages before the cache: their names, and what random keys are made of."""

    labels: tuple[str, ...]
    functions: int
    identity: np.ndarray  # int64[length]

    @functools.cached_property
    def _table(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(self.identity, tf.int64)

    def build(self, rows: Rows, identity: Where, context: Any) -> tuple[Rows, Where]:
        return rows, Where(identity.epoch, tf.gather(self._table, identity.index))

    @property
    def label(self) -> str:
        return ", ".join((*self.labels, "cache"))

    @property
    def map_functions(self) -> int:
        return self.functions


def replaced(plan: Plan, source: Source, identity: np.ndarray) -> Plan:
    """``plan`` with its stages done already, by ``source``."""
    labels = tuple(stage.label for stage in plan.stages)
    functions = sum(stage.map_functions for stage in plan.stages)
    stage = Cached(plan.element_spec, len(source), labels, functions, identity)
    return dataclasses.replace(plan, source=source, stages=(stage,))
