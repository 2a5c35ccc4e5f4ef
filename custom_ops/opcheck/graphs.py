"""Traced functions that can be sent to another process, or rewritten to compute in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2, graph_pb2

from tftoolkit.custom_ops.engine import ops

Array = np.ndarray[Any, Any]
Program = Callable[..., Sequence[Any]]  # flat tensors → tensors and None


def as_array(tensor: Any) -> Array:
    """``np.asarray``, which fails for a tensor that holds one bfloat16 and no more."""
    return np.asarray(tf.convert_to_tensor(tensor).numpy())


@dataclass(frozen=True)
class Graph:
    """A function from arrays to arrays.

    Attributes:
      present: for each result of the traced function, whether it is a tensor (the others are None).
      libraries: names and paths of the op libraries that it needs.
    """

    graph_def: bytes
    inputs: tuple[str, ...]
    constants: tuple[tuple[str, Array], ...]
    outputs: tuple[str, ...]
    present: tuple[bool, ...]
    libraries: tuple[tuple[str, str], ...]


def trace(function: Program, arrays: Sequence[Array]) -> Graph:
    """Traces with unknown sizes, or, for a function that wants them known, with those of ``arrays``."""
    try:
        return _trace(function, [tf.TensorSpec([None] * array.ndim, array.dtype) for array in arrays])
    except (LookupError, NotImplementedError):
        raise
    except Exception:
        return _trace(function, [tf.TensorSpec(array.shape, array.dtype) for array in arrays])


def _trace(function: Program, specs: Sequence[tf.TensorSpec]) -> Graph:
    present: list[bool] = []

    def body(*flat: tf.Tensor) -> list[tf.Tensor]:
        results = function(*flat)
        present[:] = [result is not None for result in results]
        return [tf.identity(tf.convert_to_tensor(result)) for result in results if result is not None]

    graph = tf.function(body, autograph=False).get_concrete_function(*specs).graph
    graph_def = graph.as_graph_def()
    libraries = _use_first_names(graph_def)
    return Graph(
        graph_def.SerializeToString(),
        tuple(tensor.name for tensor in graph.inputs[: len(specs)]),
        tuple((inside.name, outside.numpy()) for outside, inside in graph.captures),
        tuple(tensor.name for tensor in graph.outputs),
        tuple(present),
        libraries,
    )


def _use_first_names(graph_def: graph_pb2.GraphDef) -> tuple[tuple[str, str], ...]:
    """Gives ops the names that they have where only one version was ever loaded; returns their libraries."""
    libraries = set()
    for node in [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]:
        op = ops.find(node.op)
        if op is not None:
            node.op = f"{op.library.name}>{op.name}"
            libraries.add((op.library.name, str(op.library.path)))
    return tuple(sorted(libraries))


def runner(graph: Graph, jit: bool = False) -> Callable[[Sequence[Array]], list[Array | None]]:
    """Makes the graph callable in this process."""
    graph_def = graph_pb2.GraphDef.FromString(graph.graph_def)
    imported = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
    element = imported.graph.as_graph_element
    feeds = [element(name) for name in [*graph.inputs, *(name for name, _ in graph.constants)]]
    pruned = imported.prune(feeds, [element(name) for name in graph.outputs])
    function = pruned
    if jit:
        # As it was traced: where sizes do not fit together, XLA is to say so, and not TensorFlow while it traces again.
        specs = [tf.TensorSpec(feed.shape, feed.dtype) for feed in feeds]
        function = tf.function(lambda *flat: pruned(*flat), specs, jit_compile=True, autograph=False)

    def run(arrays: Sequence[Array]) -> list[Array | None]:
        outputs = iter(function(*map(tf.constant, [*arrays, *(value for _, value in graph.constants)])))
        return [as_array(next(outputs)) if there else None for there in graph.present]

    return run


# Float64: references often compute in float32 whatever they are given, so that wide inputs are not enough.

_WIDER = {
    tf.float16.as_datatype_enum: tf.float64.as_datatype_enum,
    tf.bfloat16.as_datatype_enum: tf.float64.as_datatype_enum,
    tf.float32.as_datatype_enum: tf.float64.as_datatype_enum,
    tf.complex64.as_datatype_enum: tf.complex128.as_datatype_enum,
}


def is_inexact(dtype: Any) -> bool:
    """Floating or complex, bfloat16 included."""
    wanted = tf.dtypes.as_dtype(dtype)
    return bool(wanted.is_floating or wanted.is_complex)


def wide(array: Array) -> Array:
    """The same values in float64 or complex128; integers stay as they are."""
    if not is_inexact(array.dtype):
        return array
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def single(array: Array) -> Array:
    """The same values in float32 or complex64; integers stay as they are."""
    if not is_inexact(array.dtype):
        return array
    return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)


def in_float64(function: Program, arrays: Sequence[Array]) -> Callable[[Sequence[Array]], list[Array | None]]:
    """The function with every floating computation in float64, internal casts to narrower types included.

    Raises whatever TensorFlow raises when it uses an op that has no float64 form.
    """
    try:
        graph = trace(function, [wide(array) for array in arrays])
    except Exception:  # one that mixes its inputs with float32 by itself
        graph = trace(function, [single(array) for array in arrays])
    graph_def = graph_pb2.GraphDef.FromString(graph.graph_def)
    _rename_functions(graph_def)
    for node in graph_def.node:
        _widen_attributes(node.attr)
    for inner in graph_def.library.function:
        for argument in [*inner.signature.input_arg, *inner.signature.output_arg]:
            argument.type = _WIDER.get(argument.type, argument.type)
        for node in inner.node_def:
            _widen_attributes(node.attr)
    constants = tuple((name, wide(value)) for name, value in graph.constants)
    run = runner(replace(graph, graph_def=graph_def.SerializeToString(), constants=constants))
    return lambda values: run([wide(value) for value in values])


def _rename_functions(graph_def: graph_pb2.GraphDef) -> None:
    """Bodies of loops, say: TensorFlow knows functions of their names already, with other dtypes."""
    functions = graph_def.library.function
    names = {inner.signature.name: f"{inner.signature.name}_in_float64" for inner in functions}
    for inner in functions:
        inner.signature.name = names[inner.signature.name]
    for node in [*graph_def.node, *(node for inner in functions for node in inner.node_def)]:
        node.op = names.get(node.op, node.op)
        for value in node.attr.values():
            for called in [value.func] * value.HasField("func") + [*value.list.func]:
                called.name = names.get(called.name, called.name)
    for gradient in graph_def.library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)


def _widen_attributes(attributes: Any) -> None:
    for value in attributes.values():
        _widen(value)


def _widen(value: attr_value_pb2.AttrValue) -> None:
    kind = value.WhichOneof("value")
    if kind == "type":
        value.type = _WIDER.get(value.type, value.type)
    elif kind == "tensor" and value.tensor.dtype in _WIDER:
        value.tensor.CopyFrom(tf.make_tensor_proto(wide(tf.make_ndarray(value.tensor))))
    elif kind == "func":
        _widen_attributes(value.func.attr)
    elif kind == "list":
        value.list.type[:] = [_WIDER.get(item, item) for item in value.list.type]
        for function in value.list.func:
            _widen_attributes(function.attr)
