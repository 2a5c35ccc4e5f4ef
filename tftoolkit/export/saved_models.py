"""Reads and rewrites the graphs of a SavedModel, without the model's Python code.

What is put into the place of a node is a call of a function traced for it, in the main graph and in every function of
the library: forward, gradient and loop bodies alike. The names of functions, nodes and signatures stay.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2, graph_pb2, node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.eager import context
from tensorflow.python.framework import function_def_to_graph, meta_graph
from tensorflow.python.saved_model import fingerprinting_utils

from tftoolkit.export.report import ExportError

# What computes the outputs of an operation from its inputs, in other ops.
Expand = Callable[[tf.Operation, Sequence[tf.Tensor]], Sequence[tf.Tensor]]
MAX_NESTING = 16
PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def read(folder: Path) -> saved_model_pb2.SavedModel:
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((folder / "saved_model.pb").read_bytes())
    except Exception as error:  # protobuf's DecodeError class differs between its implementations
        raise ExportError("structure", f"{folder / 'saved_model.pb'} is damaged: {error}") from error
    return proto


def nodes(graph: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    """Every node of the graph and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def without_assertions(proto: saved_model_pb2.SavedModel) -> bool:
    """Takes the assertions out of a SavedModel, which do nothing but stop it. Returns whether there were any."""
    found = False
    for meta in proto.meta_graphs:
        for node in nodes(meta.graph_def):
            if node.op == "Assert":
                node.op = "NoOp"
                node.ClearField("input")
                node.ClearField("attr")
                found = True
    return found


def op_types(folder: Path) -> set[str]:
    """The types of all ops in a SavedModel."""
    return {node.op for meta in read(folder).meta_graphs for node in nodes(meta.graph_def)}


def substitute(folder: Path, choose: Callable[[node_def_pb2.NodeDef], Expand | None]) -> list[str]:
    """Puts into the place of each node of the SavedModel what ``choose`` gives for it; None leaves the node.

    Returns the op types that were replaced. What comes in may be replaced in turn.
    """
    proto = read(folder)
    replaced: set[str] = set()
    for meta in proto.meta_graphs:
        for _ in range(MAX_NESTING):
            types = {node.op for node in nodes(meta.graph_def) if choose(node) is not None}
            if not types:
                break
            _rewrite(meta.graph_def, choose)
            replaced |= types
        else:
            raise ExportError("decompose", f"the references of {', '.join(types)} contain each other without end")
        meta.meta_info_def.stripped_op_list.CopyFrom(meta_graph.stripped_op_list_for_graph(meta.graph_def))
    if replaced:
        (folder / "saved_model.pb").write_bytes(proto.SerializeToString(deterministic=True))
        (folder / "fingerprint.pb").unlink(missing_ok=True)
        fingerprinting_utils.write_fingerprint(str(folder))
    return sorted(replaced)


def _rewrite(graph_def: graph_pb2.GraphDef, choose: Callable[[node_def_pb2.NodeDef], Expand | None]) -> None:
    """One pass over the graph and its functions."""
    references = _References({function.signature.name for function in graph_def.library.function})
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")  # runs shape inference; also brings the functions in
        for node in graph_def.node:
            expand = choose(node)
            if expand is not None:
                _replace(node, graph.get_operation_by_name(node.name), expand, references)
        for function in graph_def.library.function:
            chosen = [(node, expand) for node in function.node_def if (expand := choose(node)) is not None]
            if not chosen:
                continue
            inner = function_def_to_graph.function_def_to_graph(function)
            renamed = {}
            for node, expand in chosen:
                operation = inner.get_operation_by_name(node.name)
                _replace(node, operation, expand, references)
                for position, place in enumerate(_output_places(operation)):
                    renamed[f"{operation.name}:{place}"] = f"{operation.name}:output:{position}"
            _rename(function, renamed)
    graph_def.library.function.extend(references.functions)


def _output_places(operation: tf.Operation) -> list[str]:
    """How other nodes of a function refer to the operation's outputs, in order: ``name:index``."""
    found = []
    for output in operation.op_def.output_arg:
        length = operation.get_attr(output.number_attr) if output.number_attr else 1
        found += [f"{output.name}:{index}" for index in range(length)]
    return found


def _replace(node: node_def_pb2.NodeDef, operation: tf.Operation, expand: Expand, references: "_References") -> None:
    """Turns the node into a call; inputs, control inputs, device and annotations stay."""
    function, stateful = references.function(expand, operation)
    annotations = {name: value for name, value in node.attr.items() if name.startswith("_")}
    node.op = "StatefulPartitionedCall" if stateful else "PartitionedCall"
    node.ClearField("attr")
    for name, value in annotations.items():
        node.attr[name].CopyFrom(value)
    node.attr["f"].func.name = function
    node.attr["Tin"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in operation.inputs)
    node.attr["Tout"].list.type.extend(tensor.dtype.as_datatype_enum for tensor in operation.outputs)


def _rename(function: function_pb2.FunctionDef, renamed: dict[str, str]) -> None:
    """Follows the outputs of replaced nodes: a call names all its outputs ``output``."""
    for node in function.node_def:
        for position, reference in enumerate(node.input):
            node.input[position] = renamed.get(reference, reference)
    for name, reference in list(function.ret.items()):  # a map must not change while it is walked
        function.ret[name] = renamed.get(reference, reference)


class _References:
    """The functions traced from references, one for each combination of op, attributes, shapes and dtypes."""

    def __init__(self, taken: set[str]):
        self.functions: list[function_pb2.FunctionDef] = []
        self._taken = set(taken)
        self._known: dict[tuple[Any, ...], tuple[str, bool]] = {}

    def function(self, expand: Expand, operation: tf.Operation) -> tuple[str, bool]:
        """The function's name in the library and whether it has state."""
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in operation.inputs]
        attributes = [(attr.name, repr(operation.get_attr(attr.name))) for attr in operation.op_def.attr]
        # The size of a kernel, say, is known from a constant input: the expansion of a builtin op may depend on it.
        constants = [repr(tf.get_static_value(tensor)) for tensor in operation.inputs if tensor.dtype == tf.int32]
        shapes = [str(tensor.shape) for tensor in operation.outputs]
        key = (operation.type, *map(str, specs), *attributes, *constants, *shapes)
        if key not in self._known:
            self._known[key] = self._add(expand, operation, specs)
        return self._known[key]

    def _add(self, expand: Expand, operation: tf.Operation, specs: list[tf.TensorSpec]) -> tuple[str, bool]:
        expected = [tensor.dtype for tensor in operation.outputs]

        def reference(*inputs: tf.Tensor) -> list[tf.Tensor]:
            return list(expand(operation, inputs))

        try:
            # Not in the TensorFlow 1 graph that is default here: in one, `a == b` asks whether a is b.
            with context.eager_mode():
                traced = tf.function(reference, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # the reference's own code runs here: anything can come
            raise ExportError("decompose", f"tracing the reference of {operation.type}: {error}") from error
        returned = [tensor.dtype for tensor in traced.outputs]
        if returned != expected:
            raise ExportError("decompose", f"the reference of {operation.type} returns {returned}, the op {expected}")
        if traced.captured_inputs:
            raise ExportError(
                "decompose", f"the reference of {operation.type} uses tensors from outside; make them inside"
            )
        definitions = [traced.function_def, *traced.graph.as_graph_def().library.function]
        renamed = {definition.signature.name: self._free(definition.signature.name) for definition in definitions}
        for definition in definitions:
            copy = function_pb2.FunctionDef()
            copy.CopyFrom(definition)
            copy.signature.name = renamed[definition.signature.name]
            for node in copy.node_def:
                _rename_functions(node, renamed)
            self.functions.append(copy)
        stateful = any(definition.signature.is_stateful for definition in definitions)
        return renamed[traced.function_def.signature.name], stateful

    def _free(self, name: str) -> str:
        # TensorFlow numbers functions by process, so a name of this process may already be in the file.
        candidates = (f"{name}_{count}" if count else name for count in range(len(self._taken) + 1))
        free = next(candidate for candidate in candidates if candidate not in self._taken)
        self._taken.add(free)
        return free


def _rename_functions(node: node_def_pb2.NodeDef, renamed: dict[str, str]) -> None:
    for value in node.attr.values():
        called = [value.func] if value.HasField("func") else value.list.func
        for function in called:
            function.name = renamed.get(function.name, function.name)
