"""What a .tflite file is made of: its ops, its weights and its number format."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tftoolkit.export.convert.formats import DYNAMIC, FLOAT16_WEIGHTS, FLOAT32, INT4_WEIGHTS, INT8, INT16X8, Format
from tftoolkit.export.report import ExportError

# Ops that hand numbers on as they are.
_MOVES = {
    "EMBEDDING_LOOKUP", "EXPAND_DIMS", "GATHER", "GATHER_ND", "PACK", "RESHAPE", "SLICE", "SPLIT", "SQUEEZE",
    "STRIDED_SLICE", "TILE", "TRANSPOSE", "UNPACK",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contents:
    """``custom_ops``: names of ops that are not builtin. ``stored``: number of constants with two or more axes.

    ``float_ops``: number of ops that compute in floating point. ``keeps_state``: whether a fused recurrent op carries
    its state from call to call.
    """

    custom_ops: tuple[str, ...]
    stored: int
    format: Format
    float_ops: int
    keeps_state: bool


def inspect(path: str | os.PathLike[str]) -> Contents:
    """Reads the file. Raises ExportError where it is no TFLite file, or of a number format that cannot be proven."""
    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise ExportError("structure", f"{path} is not a TFLite file (identifier TFL3 is missing)")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
    except Exception as error:  # a damaged flatbuffer raises whatever its offsets lead to
        raise ExportError("structure", f"{path} is damaged: {type(error).__name__}: {error}") from error
    custom = {
        code.customCode.decode()
        for code in model.operatorCodes or []
        if code.builtinCode == schema.BuiltinOperator.CUSTOM
    }
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    sizes = {
        tensor.buffer: int(np.prod(tensor.shape))
        for tensor in tensors
        if tensor.shape is not None and len(tensor.shape) >= 2 and _is_constant(model, tensor)
    }
    keeps_state = any(tensor.isVariable for tensor in tensors)
    return Contents(
        tuple(sorted(custom)), sum(sizes.values()), _format(path, model, tensors), _float_ops(model), keeps_state
    )


def _is_constant(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    buffer = model.buffers[tensor.buffer]
    return (buffer.data is not None and len(buffer.data) > 0) or bool(buffer.offset)


def _format(path: str | os.PathLike[str], model: schema.ModelT, tensors: list[schema.TensorT]) -> Format:
    types = schema.TensorType
    scaled = [t for t in tensors if t.quantization is not None and t.quantization.scale is not None]
    weights = {tensor.type for tensor in scaled if _is_constant(model, tensor)}
    stored = _stored(model)
    activations = {tensor.type for tensor in scaled if id(tensor) not in stored}
    half = any(tensor.type == types.FLOAT16 for tensor in tensors)
    if not scaled:
        return FLOAT16_WEIGHTS if half else FLOAT32
    if not half and not activations and {types.INT4} <= weights <= {types.INT4, types.INT8}:
        return INT4_WEIGHTS
    if not half and types.INT4 not in weights:
        if not activations and weights == {types.INT8}:
            return DYNAMIC
        if activations == {types.INT8}:
            return INT8
        # Biases are int32 (with a scale) in int8 files, int64 in these; index tensors may be int32 too.
        if activations == {types.INT16}:
            return INT16X8
    names = {value: name.lower() for name, value in vars(types).items() if isinstance(value, int)}
    found = sorted(names[value] for value in weights | activations) + ["float16"] * half
    raise ExportError(
        "structure",
        f"{path} mixes {', '.join(found)}: there is no bound for such a number format, so nothing is proven",
    )


def _stored(model: schema.ModelT) -> set[int]:
    """The ids of the tensors that hold weights, or some of them as they are: rows of an embedding."""
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    found = {id(tensor) for graph in model.subgraphs for tensor in graph.tensors if _is_constant(model, tensor)}
    for graph in model.subgraphs:
        for op in graph.operators or []:
            inputs = [graph.tensors[index] for index in op.inputs if index >= 0]
            scaled = [
                tensor for tensor in inputs if tensor.quantization is not None and tensor.quantization.scale is not None
            ]
            moves = names.get(model.operatorCodes[op.opcodeIndex].builtinCode) in _MOVES
            if moves and scaled and all(id(tensor) in found for tensor in scaled):
                found |= {id(graph.tensors[index]) for index in op.outputs}
    return found


def _float_ops(model: schema.ModelT) -> int:
    """How many ops compute in floating point, those not counted that only convert to or from integers."""
    builtin = schema.BuiltinOperator
    passive = {builtin.QUANTIZE, builtin.DEQUANTIZE}
    return sum(
        model.operatorCodes[op.opcodeIndex].builtinCode not in passive
        and any(graph.tensors[index].type == schema.TensorType.FLOAT32 for index in op.outputs)
        for graph in model.subgraphs
        for op in graph.operators or []
    )


def layers(data: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Each op that computes in floating point: the name of its first output, and all names that it goes by.

    Those are its outputs' names and its constants': a converter renames outputs, while weights keep the layer's name.
    """
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    found = []
    for graph in model.subgraphs:
        for op in graph.operators or []:
            outputs = [graph.tensors[index] for index in op.outputs]
            constants = [graph.tensors[index] for index in op.inputs if index >= 0]
            names = [*outputs, *(tensor for tensor in constants if _is_constant(model, tensor))]
            if any(tensor.type == schema.TensorType.FLOAT32 for tensor in outputs):
                found.append((outputs[0].name.decode(), tuple(tensor.name.decode() for tensor in names)))
    return found
