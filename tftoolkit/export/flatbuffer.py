"""What a .tflite file is made of: its ops, its weights and its number format."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tftoolkit.export.parity import FLOAT32, INT8, Format
from tftoolkit.export.report import ExportError


@dataclasses.dataclass(frozen=True)
class Contents:
    """``custom_ops``: names of ops that are not builtin. ``stored``: number of constants with two or more axes."""

    custom_ops: tuple[str, ...]
    stored: int
    format: Format


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
    return Contents(tuple(sorted(custom)), sum(sizes.values()), _format(path, model, tensors))


def _is_constant(model: schema.ModelT, tensor: schema.TensorT) -> bool:
    buffer = model.buffers[tensor.buffer]
    return (buffer.data is not None and len(buffer.data) > 0) or bool(buffer.offset)


def _format(path: str | os.PathLike[str], model: schema.ModelT, tensors: list[schema.TensorT]) -> Format:
    types = schema.TensorType
    scaled = [t for t in tensors if t.quantization is not None and t.quantization.scale is not None]
    half = any(tensor.type == types.FLOAT16 for tensor in tensors)
    if not scaled and not half:
        return FLOAT32
    activations = {tensor.type for tensor in scaled if not _is_constant(model, tensor)}
    if activations == {types.INT8} and not half:
        return INT8
    raise ExportError(
        "structure", f"{path} is neither float32 nor fully int8: there is no bound for its number format yet"
    )
