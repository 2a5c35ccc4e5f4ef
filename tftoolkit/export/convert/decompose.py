"""Replaces the custom ops of a SavedModel by their plain-TensorFlow references, without the model's Python code.

A reference that itself contains custom ops is decomposed in turn.
"""

import functools
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from tftoolkit.custom_ops.engine import tf_host
from tftoolkit.export import saved_models
from tftoolkit.export.convert import library
from tftoolkit.export.report import ExportError
from tftoolkit.export.staging import stage

# From the type of an op to its declaration (custom_ops.engine.ops.Op), or None for TensorFlow's own ops.
Find = Callable[[str], Any]

VARIABLE_MEMORY = "TfToolkit>VariableMemory"  # a read, custom_ops.engine.variables.memory; it has no declaration


def custom_ops(types: Iterable[str], find: Find) -> dict[str, Any]:
    """The declarations of those types that are custom ops. Raises ExportError where one is unknown here."""
    found = {op_type: find(op_type) for op_type in sorted(set(types) - {VARIABLE_MEMORY})}
    # Only custom ops carry a namespace: TensorFlow's own names hold no ">".
    unknown = [op_type for op_type, op in found.items() if op is None and ">" in op_type]
    if unknown:
        raise ExportError(
            "decompose", f"custom ops {', '.join(unknown)} are not registered here; load their library first"
        )
    return {op_type: op for op_type, op in found.items() if op is not None}


def decompose(folder: Path, find: Find) -> list[str]:
    """Rewrites the SavedModel in ``folder`` and returns the op types that were replaced.

    A reference that itself contains custom ops is decomposed in turn.
    """
    custom_ops(saved_models.op_types(folder), find)  # names all that are unknown at once

    def reference(node: node_def_pb2.NodeDef) -> saved_models.Expand | None:
        if node.op == VARIABLE_MEMORY:
            return _read
        op = custom_ops([node.op], find).get(node.op)
        return functools.partial(tf_host.expand, op) if op is not None else None

    return saved_models.substitute(folder, reference)


def _read(node: tf.Operation, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    (variable,) = inputs
    return [tf.raw_ops.ReadVariableOp(resource=variable, dtype=node.get_attr("dtype"))]


def decomposed_copy(native: Path, folder: Path, name: str) -> Path:
    """A copy of a SavedModel without custom ops; ``name`` is the model's in error messages."""
    with stage("decompose", name):
        shutil.copytree(native, folder)
        shutil.rmtree(folder / "assets.extra", ignore_errors=True)  # the libraries of a native export
        decompose(folder, library.find)
        types = saved_models.op_types(folder)
        left = sorted(op_type for op_type in types if ">" in op_type or library.find(op_type))
        if left:
            raise ExportError("decompose", f"custom ops {', '.join(left)} are still there")
    return folder
