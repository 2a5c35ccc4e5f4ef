"""The map stage: a function of one example, applied to many."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Hashable
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.keys import example_keys, stream_state
from tftoolkit.pipelines.plan.batches import need_elements
from tftoolkit.pipelines.plan.plan import Plan
from tftoolkit.pipelines.plan.stage import Paired, Stage, Vectorized, Where
from tftoolkit.pipelines.sources.rows import Rows, is_dense, is_ragged, map_rows
from tftoolkit.pipelines.sources.source import Example, Spec

KEY_SPEC = tf.TensorSpec([2], tf.int32)

# Random ops that keep a state in a variable; those that keep it themselves have an attribute seed2.
_STATEFUL_RANDOM_OP = re.compile(r"Stateful(?!PartitionedCall)|Rng|NonDeterministicInts")
_VARIABLE_CHANGE = re.compile(r"Assign\w*VariableOp|ResourceScatter")


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """A function of the user, traced once to learn what it returns and that it keeps the pipeline's promises."""

    function: Callable[..., Example]
    graph: Any  # the function as tf.function, so that it is traced once and with AutoGraph
    stream: int | None  # number of its random stream; None if it takes no key
    before: Spec
    after: Spec

    @classmethod
    def trace(cls, function: Callable[..., Example], before: Spec, stream: int) -> "Function":
        """Raises TypeError or ValueError if ``function`` cannot be a stage after ``before``."""
        if not callable(function):
            raise TypeError(f"map: expected a function of an example, got {function!r}")
        keyed = _takes_key(function)
        graph = tf.function(function, autograph=not isinstance(function, Vectorized))  # those are graph code already
        traced = graph.get_concrete_function(*((before, KEY_SPEC) if keyed else (before,)))
        refuse_stateful_random(name_of(function), traced.graph.as_graph_def())
        after = _checked_spec(name_of(function), traced.structured_outputs)
        return cls(function, graph, stream if keyed else None, before, after)

    @property
    def over_rows(self) -> bool:
        """Whether it takes all rows at once. Rows of different shapes (``Varied``) have no common tensor."""
        specs = (*self.before.values(), *self.after.values())
        return isinstance(self.function, Vectorized) and all(is_dense(spec) or is_ragged(spec) for spec in specs)


@dataclasses.dataclass(frozen=True, eq=False)
class Map(Stage):
    """Functions one after the other. Those that take single rows share one loop over the rows."""

    functions: tuple[Function, ...]
    seed: int

    def then(self, function: Function) -> "Map | None":
        """This stage with ``function`` added to its loop, or None if it cannot be."""
        if self.functions[-1].over_rows or function.over_rows:
            return None
        return Map(function.after, self.length, (*self.functions, function), self.seed)

    def parts(self) -> list["Map"]:
        """One stage for each function."""
        return [Map(function.after, self.length, (function,), self.seed) for function in self.functions]

    def build(self, rows: Rows, identity: Where, context: Any) -> tuple[Rows, Where]:
        keys = [
            example_keys(stream_state(self.seed, identity.epoch, function.stream), identity.index)
            for function in self.functions
            if function.stream is not None
        ]
        first = self.functions[0]
        if first.over_rows:
            result = first.function.over_rows(rows, *keys)  # type: ignore[attr-defined]
            return _as_many(name_of(first.function), result, tf.size(identity.index, tf.int64)), identity
        return map_rows(self._one_row, rows, keys, first.before, self.element_spec), identity

    def _one_row(self, example: Example, keys: list[tf.Tensor]) -> Example:
        remaining = iter(keys)
        for function in self.functions:
            example = function.graph(example) if function.stream is None else function.graph(example, next(remaining))
        return example

    @property
    def label(self) -> str:
        return "map " + ", ".join(name_of(function.function) for function in self.functions)

    @property
    def key(self) -> Hashable:
        return Map, self.length, self.seed, tuple((one.function, one.stream) for one in self.functions)

    @property
    def map_functions(self) -> int:
        return len(self.functions)

    @property
    def orders(self) -> int:
        return 0

    @property
    def varies(self) -> bool:
        return any(function.stream is not None for function in self.functions)


def _as_many(name: str, rows: Rows, count: tf.Tensor) -> Rows:
    """``rows``, if there are ``count`` of them: a function over all rows must not lose one."""
    numbers = tf.stack(
        [f.nrows() if isinstance(f, tf.RaggedTensor) else tf.shape(f, tf.int64)[0] for f in rows.values()]
    )
    message = [f"map: {name} must return as many rows as it gets; got:", count, "returned:", numbers]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(tf.equal(numbers, count)), message)]):
        return {feature: tf.identity(value) for feature, value in rows.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class PairedMap:
    """A ``Paired`` function, traced for rows of ``before``."""

    function: Paired
    stream: int
    after: Spec

    @classmethod
    def trace(cls, function: Paired, before: Spec, stream: int) -> "PairedMap":
        name = function.__name__
        varied = [feature for feature, spec in before.items() if not is_dense(spec)]
        if varied:
            raise ValueError(f"map: {name} mixes examples, but the shape of {', '.join(varied)} differs between them")
        rows = {feature: tf.TensorSpec([None, *spec.shape], spec.dtype) for feature, spec in before.items()}
        graph = tf.function(function.over_rows, autograph=False)
        traced = graph.get_concrete_function(rows, rows, tf.TensorSpec([None, 2], tf.int32))
        refuse_stateful_random(name, traced.graph.as_graph_def())
        after = _checked_spec(name, traced.structured_outputs)
        return cls(function, stream, {feature: tf.TensorSpec(s.shape[1:], s.dtype) for feature, s in after.items()})

    def apply(self, rows: Rows, neighbours: Rows, identity: Where, seed: int) -> Rows:
        keys = example_keys(stream_state(seed, identity.epoch, self.stream), identity.index)
        return self.function.over_rows(rows, neighbours, keys)

    @property
    def label(self) -> str:
        return f"map {self.function.__name__}"


def mapped(plan: Plan, function: Callable[..., Example] | Paired) -> Plan:
    """See ``Pipeline.map``."""
    stream = sum(stage.map_functions for stage in plan.stages) + 1
    if isinstance(function, Paired):
        if not plan.batching or plan.paired or plan.stacked:
            raise ValueError(f"map: {function.__name__} mixes examples of a batch: put it once, right after .batch(…)")
        return dataclasses.replace(plan, paired=PairedMap.trace(function, plan.row_spec, stream))
    need_elements(plan, "map")
    traced = Function.trace(function, plan.element_spec, stream)
    last = plan.stages[-1] if plan.stages else None
    longer = last.then(traced) if isinstance(last, Map) else None
    if longer:
        return dataclasses.replace(plan, stages=(*plan.stages[:-1], longer))
    return plan.then(Map(traced.after, plan.length, (traced,), plan.seed))


def name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def refuse_stateful_random(name: str, graph: Any) -> None:
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    changed = sorted({node.op for node in nodes if _VARIABLE_CHANGE.match(node.op)})
    if changed:
        raise ValueError(
            f"map: {name} changes a variable ({', '.join(changed)}), so what it returns depends on how often it was "
            "called, and the stream could not be resumed"
        )
    found = sorted({node.op for node in nodes if _STATEFUL_RANDOM_OP.match(node.op) or "seed2" in node.attr})
    if found:
        raise ValueError(
            f"map: {name} draws random numbers that depend on how often it was called ({', '.join(found)}), so the "
            "stream could not be resumed; take (example, key) and use tf.random.stateless_* with seed=key"
        )


def _takes_key(function: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    target = function.over_rows if isinstance(function, Vectorized) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:
        raise TypeError(
            f"map: the parameters of {name_of(function)} cannot be found out; write lambda example: "
            f"{name_of(function)}(example)"
        ) from None
    required = sum(p.kind in positional and p.default is p.empty for p in parameters)
    if required not in (1, 2):
        raise TypeError(
            f"map: {name_of(function)} must take (example) or (example, key), but it has {required} positional "
            "parameters without a default"
        )
    return required == 2


def _checked_spec(name: str, outputs: Any) -> Spec:
    if not isinstance(outputs, dict):
        raise TypeError(f"map: {name} must return a dict of tensors, got {type(outputs).__name__}")
    if not outputs:
        raise ValueError(f"map: {name} returned an empty dict; an example needs at least one feature")
    for feature, value in outputs.items():
        if not isinstance(feature, str) or not isinstance(value, tf.Tensor | tf.TensorSpec):
            raise TypeError(f"map: {name} must return dense tensors by name, got {feature!r}: {type(value).__name__}")
        if value.shape.rank is None:
            raise ValueError(f"map: {name}: the rank of {feature!r} is not known; state it with tf.ensure_shape")
    return {feature: tf.TensorSpec(value.shape, value.dtype) for feature, value in outputs.items()}
