"""TensorFlow 1's ref variables become constants: neither TFLite's nor ONNX's converter knows them."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

from tftoolkit.export import saved_models
from tftoolkit.export.report import ExportError

REF_VARIABLES = {"Variable", "VariableV2"}
_INITIALISERS = ("saved_model_main_op", "legacy_init_op", "table_initializer")


def frozen(saved_model: Path, folder: Path) -> Path:
    """A copy of the SavedModel in ``folder`` whose ref variables are constants; itself where it has none.

    What only training needs is left out. Raises ExportError where a signature changes such a variable.
    """
    if not saved_models.op_types(saved_model) & REF_VARIABLES:
        return saved_model
    shutil.copytree(saved_model, folder)
    proto = saved_models.read(folder)
    values = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    for meta in proto.meta_graphs:
        _freeze(meta, values)
    (folder / "saved_model.pb").write_bytes(proto.SerializeToString())
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    return folder


def _freeze(meta: meta_graph_pb2.MetaGraphDef, values: Any) -> None:
    graph = meta.graph_def
    names = {node.name for node in graph.node if node.op in REF_VARIABLES}
    signatures = meta.signature_def.values()
    results = {
        info.name for signature in signatures for info in (*signature.inputs.values(), *signature.outputs.values())
    }
    computing = _needed(graph, results)
    kept = _needed(graph, results | _loading(meta, names))  # without the training step, which changes variables
    for node in [node for node in graph.node if node.name not in kept]:
        graph.node.remove(node)
    for node in graph.node:
        written = [owner for owner in _written(node) if owner in names]
        if node.name in names:
            if not values.has_tensor(node.name):
                raise ExportError("convert", f"the SavedModel holds no value for its variable {node.name}")
            _constant(node, values.get_tensor(node.name))
        elif written and node.op == "IsVariableInitialized":
            _constant(node, np.array(True))
        elif written and node.name in computing:
            raise ExportError(
                "convert", f"a signature changes the variable {written[0]} ({node.op}): it cannot be frozen"
            )
        elif written:  # the restoring of what is a constant now
            node.op = "NoOp"
            node.ClearField("input")
            node.ClearField("attr")
    for name, collection in list(meta.collection_def.items()):
        if collection.HasField("bytes_list"):
            collection.bytes_list.value[:] = [v for v in collection.bytes_list.value if _keeps(v, names)]
        elif not {_node(value) for value in collection.node_list.value} <= kept:
            del meta.collection_def[name]


def _needed(graph: graph_pb2.GraphDef, wanted: Iterable[str]) -> set[str]:
    """The names of the nodes behind these tensors and ops."""
    inputs = {node.name: [_node(name) for name in node.input] for node in graph.node}
    found, left = set(), [_node(name) for name in wanted]
    while left:
        name = left.pop()
        if name not in found and name in inputs:
            found.add(name)
            left += inputs[name]
    return found


def _loading(meta: meta_graph_pb2.MetaGraphDef, frozen_names: set[str]) -> set[str]:
    """What a loader runs, feeds or looks up."""
    saver = meta.saver_def
    found = {saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name} - {""}
    for name in _INITIALISERS:
        if name in meta.collection_def:
            found |= set(meta.collection_def[name].node_list.value)
    for collection in meta.collection_def.values():  # variables of the newer kind stay
        for variable in filter(None, map(_variable, collection.bytes_list.value)):
            if _node(variable.variable_name) not in frozen_names:
                found |= {variable.variable_name, variable.initializer_name, variable.snapshot_name}
                found |= {variable.initial_value_name} - {""}
    return found | {info.tensor_info.name for info in meta.asset_file_def}


def _node(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]


def _written(node: node_def_pb2.NodeDef) -> list[str]:
    """The variables that the node takes by reference."""
    definition = op_def_registry.get(node.op)
    if definition is None or not any(argument.is_ref for argument in definition.input_arg):
        return []
    return [_node(name) for name in node.input[:1] if not name.startswith("^")]


def _constant(node: node_def_pb2.NodeDef, value: np.ndarray) -> None:
    proto = tf.make_tensor_proto(value)
    node.op = "Const"
    node.ClearField("input")
    node.ClearField("attr")
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)


def _keeps(item: bytes, frozen_names: set[str]) -> bool:
    variable = _variable(item)
    return variable is not None and _node(variable.variable_name) not in frozen_names


def _variable(item: bytes) -> Any:
    """The VariableDef in an entry of a collection, or None."""
    try:
        found = variable_pb2.VariableDef.FromString(item)
        return found if found.variable_name and found.initializer_name else None
    except Exception:  # an entry of another kind; protobuf's DecodeError differs between its implementations
        return None
