"""The TensorFlow side of the op host: opens it (building it first where needed) and registers ops with it."""

from __future__ import annotations

import ctypes
import functools
import threading

import tensorflow as tf
from tensorflow.core.framework import op_def_pb2

from tftoolkit.custom_ops import builder
from tftoolkit.custom_ops.errors import LoadError
from tftoolkit.custom_ops.library import OpLibrary
from tftoolkit.custom_ops.schema import ATTRIBUTE_TYPES, DTYPES, REST, Argument, Attribute, Dim, Schema

_lock = threading.Lock()
_registered: dict[str, OpLibrary] = {}  # TensorFlow op name → the library it came from


def op_type(library: OpLibrary, op: str) -> str:
    """The op's name in TensorFlow."""
    return f"{library.name}>{op}"


def register(library: OpLibrary, op: str) -> str:
    """Makes an op known to TensorFlow's runtime and to XLA, once, and returns its TensorFlow name.

    Raises LoadError when another library has registered the name, BuildError when the host cannot be built.
    """
    name = op_type(library, op)
    with _lock:
        if name in _registered:
            if _registered[name].path.read_bytes() != library.path.read_bytes():  # a copy is welcome
                raise LoadError(
                    f"{name} from {library.path} clashes with the op of that name from {_registered[name].path}"
                )
            return name
        schema = library.schemas[op]
        definition = op_def(name, schema).SerializeToString()
        text = f"{op}{schema}".encode()
        _check(_host().tk_register_op(definition, len(definition), text, wire_form(schema).encode()))
        for platform, handler in library.handlers[op].items():
            _check(_host().tk_register_kernel(name.encode(), platform.encode(), handler))
        _registered[name] = library
    return name


def op_def(name: str, schema: Schema) -> op_def_pb2.OpDef:
    """TensorFlow's own declaration of the op."""
    definition = op_def_pb2.OpDef(name=name)
    for argument, args in [(a, definition.input_arg) for a in schema.inputs] + [
        (a, definition.output_arg) for a in schema.outputs
    ]:
        if argument.dtype in DTYPES:
            args.add(name=argument.name, type=_dtype(argument.dtype).as_datatype_enum)
        else:
            args.add(name=argument.name, type_attr=argument.dtype)
    for variable, choices in schema.dtype_vars.items():
        attr = definition.attr.add(name=variable, type="type")
        attr.allowed_values.list.type.extend(_dtype(choice).as_datatype_enum for choice in choices)
    for attribute in schema.attributes:
        _add_attribute(definition, attribute)
    return definition


# f64 as text, because TensorFlow's float attributes have 32 bits; see host/attributes.h.
_TF_ATTRIBUTES = {"f32": "float", "f64": "string", "i32": "int", "i64": "int", "bool": "bool", "str": "string"}


def attribute_value(attribute: Attribute, value: object) -> object:
    """A checked attribute value in the form TensorFlow stores. Raises TypeError or ValueError."""
    checked = attribute.convert(value)
    return repr(checked) if attribute.type == "f64" else checked


def _add_attribute(definition: op_def_pb2.OpDef, attribute: Attribute) -> None:
    attr = definition.attr.add(name=attribute.name, type=_TF_ATTRIBUTES[attribute.type])
    if attribute.default is None:
        return
    value = attribute_value(attribute, attribute.default)
    if attr.type == "string":
        attr.default_value.s = str(value).encode()
    elif attr.type == "float":
        attr.default_value.f = value
    elif attr.type == "bool":
        attr.default_value.b = value
    else:
        attr.default_value.i = value


def _dtype(name: str) -> tf.DType:
    return tf.dtypes.as_dtype(DTYPES[name])


def wire_form(schema: Schema) -> str:
    """The schema's shapes for the host; the format stands in host/signature.h."""
    names = schema.dim_names
    attributes = sorted(schema.attributes, key=lambda attribute: attribute.name)

    def dim(value: Dim) -> str:
        if value == REST:
            return "2 0"
        return f"0 {value}" if isinstance(value, int) else f"1 {names.index(value)}"

    def argument(value: Argument) -> str:
        return " ".join([value.name, str(len(value.dims)), *map(dim, value.dims)])

    words = [f"{len(schema.inputs)} {len(schema.outputs)} {len(attributes)} {len(names)}"]
    words += [argument(value) for value in [*schema.inputs, *schema.outputs]]
    words += [f"{attribute.name} {ATTRIBUTE_TYPES.index(attribute.type)}" for attribute in attributes]
    return " ".join([*words, *names])


@functools.cache
def _host() -> ctypes.CDLL:
    path = builder.build(builder.host_recipe())
    try:
        library = ctypes.CDLL(str(path))  # finds TensorFlow's symbols because TensorFlow was imported above
    except OSError as error:
        raise LoadError(f"cannot open the op host {path}: {error}. Delete the file to have it built anew.") from error
    library.tk_register_op.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
    library.tk_register_kernel.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    library.tk_register_op.restype = library.tk_register_kernel.restype = ctypes.c_void_p
    library.tk_free.argtypes = [ctypes.c_void_p]
    library.tk_free.restype = None
    return library


def _check(error: int | None) -> None:
    if error:
        text = ctypes.string_at(error).decode()
        _host().tk_free(error)
        raise LoadError(text)
