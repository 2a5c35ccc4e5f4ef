"""TensorFlow 1's ref variables become constants: neither TFLite's nor ONNX's converter knows them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2, variable_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from tftoolkit.export import saved_models
from tftoolkit.export.report import ExportError

REF_VARIABLES = {"Variable", "VariableV2"}
_CHANGES = {"AssignAdd", "AssignSub", "CountUpTo", "ScatterAdd", "ScatterSub", "ScatterUpdate"}


def frozen(saved_model: Path, folder: Path) -> Path:
    """A copy of the SavedModel in ``folder`` whose ref variables are constants; itself where it has none.

    Raises ExportError where the graph changes such a variable.
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
    for node in graph.node:
        owner = node.input[0].partition(":")[0] if node.input else None
        if node.name in names:
            if not values.has_tensor(node.name):
                raise ExportError("convert", f"the SavedModel holds no value for its variable {node.name}")
            _constant(node, values.get_tensor(node.name))
        elif owner in names and node.op in _CHANGES:
            raise ExportError(
                "convert",
                f"the model changes its variable {owner} ({node.op}), which no converter of ref variables keeps",
            )
        elif owner in names and node.op == "IsVariableInitialized":
            _constant(node, np.array(True))
        elif owner in names and node.op == "Assign":  # initialisers, and the restoring of what is a constant now
            node.op = "NoOp"
            node.ClearField("input")
            node.ClearField("attr")
    for collection in meta.collection_def.values():
        if not collection.HasField("bytes_list"):
            continue
        kept = [item for item in collection.bytes_list.value if _variable(item) not in names]
        collection.bytes_list.value[:] = kept


def _constant(node: node_def_pb2.NodeDef, value: np.ndarray) -> None:
    proto = tf.make_tensor_proto(value)
    node.op = "Const"
    node.ClearField("input")
    node.ClearField("attr")
    node.attr["dtype"].type = proto.dtype
    node.attr["value"].tensor.CopyFrom(proto)


def _variable(item: bytes) -> str | None:
    """The name of the variable that an entry of a collection describes."""
    try:
        return variable_pb2.VariableDef.FromString(item).variable_name.partition(":")[0]
    except Exception:  # an entry of another kind; protobuf's DecodeError differs between its implementations
        return None
