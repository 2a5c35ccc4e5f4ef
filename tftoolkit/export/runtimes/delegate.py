"""Custom ops in a .tflite file: run by their own kernels, through an external delegate that lies beside the file.

``NAME.tflite.delegate`` holds the delegate, the op libraries and ``delegate.json``, which names them. In C or C++ give
the same names to ``TfLiteExternalDelegateOptionsInsert`` (namespace -> paths of libraries, separated by colons).
"""

import json
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit.export.report import ExportError

SUFFIX = ".delegate"
_DESCRIPTION = "delegate.json"
_FORMAT = 0x31444B54  # kFormat in custom_ops/tflite_delegate/delegate.cc, which reads what _options writes
# XLA_FFI_AttrType and XLA_FFI_DataType of xla/ffi/api/c_api.h
_ARRAY, _SCALAR, _STRING = 1, 3, 4
_TYPES = {"bool": (1, np.bool_), "i32": (4, np.int32), "i64": (5, np.int64), "f32": (11, np.float32),
          "f64": (12, np.float64)}  # fmt: skip


def folder_of(path: Path) -> Path:
    """Where the delegate of a .tflite file lies, if it needs one."""
    return path.with_name(path.name + SUFFIX)


def pack(folder: Path, custom: Mapping[str, Any]) -> None:
    """Builds the delegate into ``folder``, with the libraries of these ops (op type -> Op) and their description."""
    from tftoolkit.custom_ops.engine import builder
    from tftoolkit.custom_ops.engine.library import delegate_recipe

    folder.mkdir()
    delegate = builder.build(delegate_recipe())
    shutil.copyfile(delegate, folder / "libtftoolkit_delegate.so")
    libraries: dict[str, list[str]] = {}
    for op_type, op in sorted(custom.items()):
        if "CPU" not in op.handlers:
            raise ExportError("convert", f"{op_type} has no CPU kernel, which is what a delegate runs")
        files = libraries.setdefault(op_type.rpartition(">")[0], [])
        if op.library.path.name not in files:
            files.append(op.library.path.name)
            shutil.copyfile(op.library.path, folder / op.library.path.name)
    description = {"delegate": "libtftoolkit_delegate.so", "libraries": libraries}
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def load(path: Path) -> Any:
    """The delegate of a .tflite file, for ``Interpreter(…, experimental_delegates=[load(path)])``.

    It is native code of the folder beside the file: load only what you trust. Raises ExportError where it is damaged,
    was built for another kind of machine, or lacks a library.
    """
    from ai_edge_litert.interpreter import load_delegate

    folder = folder_of(path).absolute()
    try:
        description = json.loads((folder / _DESCRIPTION).read_text())
        delegate = folder / Path(description["delegate"]).name
        libraries = {
            namespace: [folder / Path(file).name for file in files]
            for namespace, files in description["libraries"].items()
        }
        for file in [delegate, *(file for files in libraries.values() for file in files)]:
            if not file.is_file():
                raise FileNotFoundError(f"{file.name} is missing")
        options = {namespace: ":".join(map(str, files)) for namespace, files in libraries.items()}
        return load_delegate(str(delegate), options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError("structure", f"cannot load the delegate in {folder.name}: {error}") from None


def prepare(data: bytes, custom: Mapping[str, Any]) -> bytes:
    """The .tflite file with all that the delegate needs to know in the options of these ops' nodes.

    Raises ExportError where a shape is not fixed.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for graph in model.subgraphs:
        for op in graph.operators or []:
            name = (model.operatorCodes[op.opcodeIndex].customCode or b"").decode()
            if name not in custom:
                continue
            values = flexbuffers.Loads(bytes(op.customOptions))
            shapes = [[_fixed_shape(name, graph.tensors[i]) for i in side] for side in (op.inputs, op.outputs)]
            op.customOptions = np.frombuffer(_options(custom[name], values, *shapes), np.uint8)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _fixed_shape(name: str, tensor: Any) -> list[int]:
    signature = tensor.shapeSignature
    if not tensor.hasRank and tensor.shape is None:
        return []
    if signature is not None and any(size < 0 for size in signature):
        raise ExportError(
            "convert",
            f"{name}: ops='native' needs fixed shapes, but {tensor.name.decode()} is {[int(n) for n in signature]}; "
            f"give signatures with fixed shapes, tf.TensorSpec([1, …])",
        )
    return [int(size) for size in tensor.shape]


def _options(op: Any, values: Mapping[str, Any], inputs: list[list[int]], outputs: list[list[int]]) -> bytes:
    from tftoolkit.custom_ops.engine.op_def import kernel_attributes

    words = [_number(_FORMAT)]
    for shapes in (inputs, outputs):
        words.append(_number(len(shapes)))
        for shape in shapes:
            words += [_number(len(shape)), *map(_number, shape)]
    aliases = _aliases(op.schema, len(inputs))
    words.append(_number(len(aliases)))
    words += [_number(position) for alias in aliases for position in alias]
    attributes = kernel_attributes(op.schema)
    words.append(_number(len(attributes)))
    for attribute in attributes:
        if attribute.name not in values:
            raise ExportError(
                "convert",
                f"TensorFlow's converter loses the {attribute.type} attribute {attribute.name} of {op.name}; declare "
                f"it as a list of integers, or leave ops='native' out",
            )
        words += _attribute(attribute, values[attribute.name])
    return b"".join(words)


def _attribute(attribute: Any, value: Any) -> list[bytes]:
    name, scalar = attribute.name.encode(), attribute.scalar_type
    head = [_number(len(name)), name]
    items = list(value) if attribute.is_list else [value]
    if scalar == "str":
        texts = [item if isinstance(item, bytes) else str(item).encode() for item in items]
        text = b"".join(item + b"\0" for item in texts) if attribute.is_list else texts[0]
        return [*head, _number(_STRING), _number(0), _number(len(items)), _number(len(text)), text]
    code, dtype = _TYPES[scalar]
    if scalar == "bool" and attribute.is_list:
        code = 2  # FFI reads lists of booleans as bytes
    raw = np.array([float(item) if scalar == "f64" else item for item in items], dtype).tobytes()
    return [*head, _number(_ARRAY if attribute.is_list else _SCALAR), _number(code), _number(len(items)),
            _number(len(raw)), raw]  # fmt: skip


def _aliases(schema: Any, flat_inputs: int) -> list[tuple[int, int]]:
    """(output, input) by place, with lists laid flat."""
    lists = [argument for argument in schema.inputs if argument.variadic]
    length = (flat_inputs - len(schema.inputs) + len(lists)) // len(lists) if lists else 0
    first, place = {}, 0
    for argument in schema.inputs:
        first[argument.name] = place
        place += length if argument.variadic else 1
    found, place = [], 0
    for argument in schema.outputs:
        count = length if argument.variadic else 1
        if argument.alias:
            found += [(place + i, first[argument.alias] + i) for i in range(count)]
        place += count
    return found


def _number(value: int) -> bytes:
    return struct.pack("<q", value)
