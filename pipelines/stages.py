"""The map stage: a function of one example, applied to every row of a batch."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example, Spec

KEY_SPEC = tf.TensorSpec([2], tf.int32)

# Random ops that keep their own state; the stateless ones have names that start with Stateless.
_STATEFUL_RANDOM_OP = re.compile(
    r"Random|Stateful(?!PartitionedCall)|Multinomial|TruncatedNormal|ParameterizedTruncated|SampleDistorted|Rng"
)


class Vectorized:
    """A function of one example that is written over the rows of a whole batch, so a batch costs one call.

    Calling it with one example runs the same code on a batch of one: there is no second implementation. It is right
    only if no row looks at another row.
    """

    def __init__(self, name: str, over_rows: Callable[..., Example]) -> None:
        """``over_rows(batch)`` or ``over_rows(batch, keys)`` with keys int32[n, 2]; ``name`` stands in states."""
        self.__name__ = name
        self.over_rows = over_rows

    def __call__(self, example: Example, *key: tf.Tensor) -> Example:
        batch = {name: tf.convert_to_tensor(value)[tf.newaxis] for name, value in example.items()}
        keys = (tf.convert_to_tensor(one)[tf.newaxis] for one in key)
        return {name: value[0] for name, value in self.over_rows(batch, *keys).items()}


@dataclasses.dataclass(frozen=True, eq=False)
class MapStage:
    """A function of the user, traced once to learn what it returns and that it keeps the pipeline's promises."""

    function: Callable[..., Example]
    graph: Any  # the function as tf.function, so that it is traced once and with AutoGraph
    keyed: bool
    element_spec: Spec

    @classmethod
    def trace(cls, function: Callable[..., Example], input_spec: Spec) -> "MapStage":
        """Raises TypeError or ValueError if ``function`` cannot be a stage after ``input_spec``."""
        if not callable(function):
            raise TypeError(f"map: expected a function of an example, got {function!r}")
        keyed = _takes_key(function)
        signature = (input_spec, KEY_SPEC) if keyed else (input_spec,)
        graph = tf.function(function)
        traced = graph.get_concrete_function(*signature)
        _refuse_stateful_random(name_of(function), traced.graph.as_graph_def())
        return cls(function, graph, keyed, _checked_spec(name_of(function), traced.structured_outputs))

    def apply(self, batch: Example, keys: tf.Tensor | None) -> Example:
        """The function over every row of ``batch``; ``keys`` int32[n, 2] where the function takes one."""
        arguments = (batch,) if keys is None else (batch, keys)
        if isinstance(self.function, Vectorized):
            return self.function.over_rows(*arguments)
        # map_fn and not vectorized_map: that one rewrites the function, may round differently from a single call, and
        # runs stateless random ops through a slower loop of its own.
        return tf.map_fn(lambda row: self.graph(*row), arguments, fn_output_signature=self.element_spec)


def name_of(function: Callable[..., Any]) -> str:
    if isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _takes_key(function: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    target = function.over_rows if isinstance(function, Vectorized) else function
    parameters = inspect.signature(target).parameters.values()
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
    return {feature: tf.TensorSpec(value.shape, value.dtype) for feature, value in outputs.items()}


def _refuse_stateful_random(name: str, graph: Any) -> None:
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    found = sorted({node.op for node in nodes if _STATEFUL_RANDOM_OP.match(node.op)})
    if found:
        raise ValueError(
            f"map: {name} draws random numbers that depend on how often it was called ({', '.join(found)}), so the "
            "stream could not be resumed; take (example, key) and use tf.random.stateless_* with seed=key"
        )
