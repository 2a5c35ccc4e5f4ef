"""The TensorFlow host: registers ops with TensorFlow at run time and calls them there.

The op host's C++ library is opened (and built first, where needed) when the first op is registered.
"""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf
from absl import logging
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core, execute
from tensorflow.python.framework import op_def_library
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops.parallel_for import pfor

from tftoolkit.custom_ops.engine import builder, toolchain, whole_numbers
from tftoolkit.custom_ops.engine.autograph import as_written
from tftoolkit.custom_ops.engine.declaration import Declaration
from tftoolkit.custom_ops.engine.errors import LoadError
from tftoolkit.custom_ops.engine.op_def import (
    LIST_LENGTH,
    dtype_of,
    node_name,
    op_def,
    read_attribute,
    store_attribute,
    wire_form,
)
from tftoolkit.custom_ops.engine.schema import (
    DTYPES,
    REST,
    Argument,
    presence,
)

_lock = threading.RLock()
_by_type: dict[str, Declaration] = {}  # TensorFlow name → op
_types: dict[Declaration, str] = {}


def find(op_type: str) -> Declaration | None:
    """The op with this TensorFlow name, or None."""
    return _by_type.get(op_type)


def register(op: Declaration) -> str:
    """Makes an op known to TensorFlow's runtime and to XLA, once, and returns its TensorFlow name.

    TensorFlow cannot replace an op. So one that comes from a library with the same name but other content (its source
    was changed, say) gets a numbered name, and a warning says so: old traces keep the old kernel, new ones get this.

    Raises BuildError when the host cannot be built, LoadError when TensorFlow or XLA refuse the op.
    """
    if op in _types:
        return _types[op]
    with _lock:
        if op in _types:
            return _types[op]
        first = name = f"{op.library.name}>{op.name}"
        if not re.fullmatch(r"[A-Z]\w*>[A-Z]\w*", name, re.ASCII):  # TensorFlow would end the process
            raise LoadError(
                f"TensorFlow wants names of libraries and ops to begin with a capital letter, got {name}",
                code="op-declaration",
            )
        version = 1
        while name in _by_type:
            version += 1
            name = f"{first}_{version}"
        if version > 1:
            logging.warning("tftoolkit: %s was registered before from another library; this one is now %s", first, name)
        definition, text, wire = declaration(name, op)
        _check(_host().tk_register_op(definition, len(definition), text, wire))
        for platform, handler in op.handlers.items():
            _check(_host().tk_register_kernel(name.encode(), platform.encode(), handler))
        tf.RegisterGradient(name)(functools.partial(_gradient, op))
        pfor.RegisterPFor(name)(functools.partial(_vectorize, op))
        _by_type[name] = op
        _types[op] = name
        return name


def declaration(name: str, op: Declaration) -> tuple[bytes, bytes, bytes]:
    """What the host's ``tk_register_op`` takes: the OpDef, the schema for messages and for shapes."""
    definition = op_def(name, op.schema).SerializeToString()
    return definition, f"{op.name}{op.schema}".encode(), wire_form(op.schema).encode()


# Calling


def call(op: Declaration, inputs: Sequence[Any], attributes: Mapping[str, Any], name: str | None) -> Any:
    """Runs or traces the op; ``inputs`` as its caller gave them, ``attributes`` complete and checked."""
    if not op.handlers:
        return _without_kernel(op, inputs, attributes)
    if op.whole_inputs:
        whole_numbers.check(op, inputs)
    stored: dict[str, Any] = {}
    if op.schema.attributes:
        stored = {node_name(item): store_attribute(item, attributes[item.name]) for item in op.schema.attributes}
    if not op.is_plain:
        inputs = _prepare(op, inputs, stored)
    op_type = _types.get(op) or register(op)
    outputs: Sequence[Any]
    if context.executing_eagerly():
        flat = [item for pair in stored.items() for item in pair]
        try:
            outputs = _eagerly(op, op_type, inputs, flat, name)
        except core._FallbackException:  # inputs that are neither tensors nor arrays
            outputs = _eagerly_converted(op, op_type, inputs, stored, name)
    else:
        outputs = _in_graph(op, op_type, inputs, stored, name)
    if op.is_plain:
        return outputs[0] if len(outputs) == 1 else op.output_type(*outputs)
    length = next((len(v) for v, a in zip(inputs, op.schema.inputs, strict=True) if a.variadic), 0)
    return op.group_outputs(outputs, length, attributes)


def _eagerly(
    op: Declaration, op_type: str, inputs: Sequence[Any], flat: Sequence[Any], name: str | None
) -> Sequence[Any]:
    """``flat``: names and values of attributes in turn. Raises core._FallbackException: inputs are to be converted."""
    try:
        outputs = pywrap_tfe.TFE_Py_FastPathExecute(context.context(), op_type, name, *inputs, *flat)
    except core._NotOkStatusException as error:
        tf_ops.raise_from_not_ok_status(error, name)
    if len(op.schema.outputs) == 1:
        return outputs if op.schema.outputs[0].variadic else [outputs]
    return outputs if op.is_plain else op.flat_outputs(outputs)  # of several outputs, lists come as lists


def _eagerly_converted(
    op: Declaration, op_type: str, inputs: Sequence[Any], stored: Mapping[str, Any], name: str | None
) -> Sequence[Any]:
    dtypes: dict[str, tf.DType] = {}
    flat: list[tf.Tensor] = []
    attributes = dict(stored)
    for argument, value in zip(op.schema.inputs, inputs, strict=True):
        wanted = dtype_of(argument.dtype) if argument.dtype in DTYPES else dtypes.get(argument.dtype)
        tensors = [tf.convert_to_tensor(item, wanted) for item in (value if argument.variadic else [value])]
        dtypes.setdefault(argument.dtype, tensors[0].dtype)
        flat += tensors
        if argument.variadic:
            attributes[LIST_LENGTH] = len(tensors)
    attributes |= {name: dtypes[name].as_datatype_enum for name in op.schema.dtype_vars if name in dtypes}
    pairs = tuple(item for pair in attributes.items() for item in pair)
    length = attributes.get(LIST_LENGTH, 0)
    count = sum(length if output.variadic else 1 for output in op.schema.outputs)
    outputs: list[Any] = execute.execute(op_type, count, flat, pairs, context.context(), name)
    if execute.must_record_gradient():
        execute.record_gradient(op_type, flat, pairs, outputs)
    return outputs


def _in_graph(
    op: Declaration, op_type: str, inputs: Sequence[Any], stored: Mapping[str, Any], name: str | None
) -> Sequence[Any]:
    names = (argument.name for argument in op.schema.inputs)
    arguments = dict(zip(names, inputs, strict=True))
    _, _, node, _ = op_def_library._apply_op_helper(op_type, name=name, **arguments, **stored)
    if execute.must_record_gradient():
        attributes = tuple(item for attr in node.op_def.attr for item in (attr.name, node.get_attr(attr.name)))
        execute.record_gradient(op_type, node.inputs, attributes, node.outputs)
    outputs: Sequence[Any] = node.outputs
    return outputs


def _prepare(op: Declaration, inputs: Sequence[Any], stored: dict[str, Any]) -> list[Any]:
    """Checks lists, and puts an empty tensor where an optional input is absent; its presence is an attribute."""
    lengths = {}
    for argument, value in zip(op.schema.inputs, inputs, strict=True):
        if argument.variadic:
            if not isinstance(value, list | tuple) or not value:
                raise TypeError(f"{op.__name__}: {argument.name} must be a list of one or more tensors, got {value!r}")
            lengths[argument.name] = len(value)
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{op.__name__}: all lists must have the same length, but {text}")
    prepared = [list(value) if a.variadic else value for a, value in zip(op.schema.inputs, inputs, strict=True)]
    for i, argument in enumerate(op.schema.inputs):
        if argument.optional:
            stored[presence(argument)] = prepared[i] is not None
            if prepared[i] is None:
                dtype = dtype_for(op, argument, prepared)
                prepared[i] = empty(dtype.as_datatype_enum) if context.executing_eagerly() else tf.zeros([0], dtype)
        elif prepared[i] is None:
            raise TypeError(f"{op.__name__}: {argument.name} must be given; the signature is {op}")
    return prepared


@functools.cache
def empty(dtype: int) -> tf.Tensor:
    """Eagerly; to make one takes longer than most ops.

    Args:
      dtype: TensorFlow's number of it, since a tf.DType is hashed in Python.
    """
    return tf.zeros([0], tf.as_dtype(dtype))


def dtype_for(op: Declaration, argument: Argument, inputs: list[Any]) -> tf.DType:
    """The dtype that an absent input would have."""
    if argument.dtype in DTYPES:
        return dtype_of(argument.dtype)
    for i, (other, value) in enumerate(zip(op.schema.inputs, inputs, strict=True)):
        if other.dtype == argument.dtype and value is not None:
            if other.variadic:
                return tf.convert_to_tensor(value[0]).dtype
            if not isinstance(value, tf.Tensor):
                value = inputs[i] = tf.convert_to_tensor(value)
            return value.dtype
    return dtype_of(op.schema.dtype_vars[argument.dtype][0])


@functools.cache
def _warn_of_reference(op: Declaration) -> None:
    logging.warning("tftoolkit: %s has no kernel for this machine; its reference runs in its place", op.name)


def _without_kernel(op: Declaration, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    if op.reference_function is None:
        raise LoadError(
            f"{op.name} has neither a kernel nor a reference: add TK_KERNEL or @{op.__name__}.reference",
            code="op-no-kernel",
        )
    _warn_of_reference(op)
    tensors = [
        [tf.convert_to_tensor(item) for item in value] if argument.variadic
        else None if value is None else tf.convert_to_tensor(value)
        for argument, value in zip(op.schema.inputs, inputs, strict=True)
    ]  # fmt: skip
    return as_written(op.run_reference)(*tensors, **attributes)


def may_record_gradients() -> bool:
    """Whether a gradient tape is there, in this thread, which may record what is called now."""
    return bool(execute.must_record_gradient())


# Nodes: what TensorFlow hands to gradients and converters


def node_attributes(op: Declaration, node: Any) -> dict[str, Any]:
    """The Python values of the op's declared attributes at a node (anything with ``get_attr``)."""
    return {item.name: read_attribute(item, node.get_attr(node_name(item))) for item in op.schema.attributes}


def expand(op: Declaration, node: Any, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What a node computes, in plain TensorFlow ops: flat inputs → flat outputs. Raises LookupError: no reference."""
    outputs = op.run_reference(*op.group_inputs(inputs, node.get_attr), **node_attributes(op, node))
    empty = tf.zeros([0])  # an output that nobody asked for
    return [empty if output is None else tf.convert_to_tensor(output) for output in op.flat_outputs(outputs)]


def _gradient(op: Declaration, node: Any, *output_gradients: Any) -> Any:
    if op.gradient_function is None:
        raise LookupError(
            f"{op.name} has no gradient: write one under @{op.__name__}.gradient, or call "
            f"{op.__name__}.differentiate_reference()"
        )
    if not op.takes_sparse_gradients:
        output_gradients = tuple(map(_dense, output_gradients, node.outputs))
    return op.input_gradients(node, output_gradients)


def _dense(gradient: Any, output: tf.Tensor) -> Any:
    """The gradient of an output that goes into ``tf.gather`` as a tensor; others as they are."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    # Not tf.convert_to_tensor, which warns of unknown sizes, and refuses slices that do not say them.
    rows = tf.shape(output, gradient.indices.dtype)[0]
    summed = tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)
    return tf.ensure_shape(summed, output.shape)


def differentiate_reference(op: Declaration, node: Any, *output_gradients: Any) -> list[tf.Tensor | None]:
    """The gradients of a node's inputs, by differentiating the reference."""
    inputs = [tf.identity(tensor) for tensor in node.inputs]
    floating = [tensor for tensor in inputs if tensor.dtype.is_floating or tensor.dtype.is_complex]
    with tf.GradientTape() as tape:
        tape.watch(floating)
        outputs = expand(op, node, inputs)
    usable = [(out, dy) for out, dy in zip(outputs, output_gradients, strict=True) if dy is not None]
    targets, gradients = zip(*usable, strict=True)
    found = dict(
        zip(map(id, floating), tape.gradient(list(targets), floating, output_gradients=list(gradients)), strict=True)
    )
    return [found.get(id(tensor)) for tensor in inputs]


def _vectorize(op: Declaration, pfor_input: Any) -> Any:
    """Teaches ``tf.vectorized_map`` (and jacobians) the ops that are declared batchable: one call on stacked inputs.

    For others, and where an input is stacked that has no ``...``, TensorFlow makes a loop by itself.
    """
    node, places = pfor_input.op, range(pfor_input.num_inputs)
    stacked = [pfor_input.input(i)[1] for i in places]
    if op.schema.batchable and any(stacked):
        leading = [
            REST in argument.dims and (not argument.optional or node.get_attr(presence(argument)))
            for argument in op.schema.inputs
        ]
        if all(can or not is_stacked for is_stacked, can in zip(stacked, leading, strict=True)):
            pfor_input.stack_inputs([i for i in places if leading[i]])
            inputs = op.group_inputs([pfor_input.input(i)[0] for i in places], node.get_attr)
            outputs = call(op, inputs, node_attributes(op, node), None)
            return [pfor.wrap(output, True) for output in op.flat_outputs(outputs)]
    raise pfor.ConversionNotImplementedError(f"{op} is not called on stacked inputs")  # makes it a loop


@functools.cache
def host_path() -> str:
    """The op host's library, built where it is not yet. Raises BuildError."""
    return str(builder.build(builder.host_recipe()))


@functools.cache
def plain_ops() -> ModuleType:
    """Opens the host. Returns functions for the ordinary TensorFlow ops in it, which no library declares.

    Raises BuildError, LoadError.
    """
    path = host_path()
    folder = toolchain.tensorflow_dir()
    assert folder is not None
    try:
        # The host names no library, but finds TensorFlow's symbols where `import tensorflow` or this has put them: in
        # the global scope. 2.18 and 2.19 keep them to themselves.
        ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), mode=ctypes.RTLD_GLOBAL)
        return tf.load_op_library(path)
    except (tf.errors.OpError, RuntimeError, OSError) as error:
        raise LoadError(f"cannot open the op host {path}: {error}. Delete the file to have it built anew.") from error


@functools.cache
def _host() -> ctypes.CDLL:
    plain_ops()  # the ops register when TensorFlow opens the host, not when ctypes does
    library = ctypes.CDLL(host_path())
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
