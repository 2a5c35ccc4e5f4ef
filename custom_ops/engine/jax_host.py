"""The JAX host: the same handlers through ``jax.ffi``. Needs no TensorFlow."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tftoolkit.custom_ops.engine.declaration import Declaration
from tftoolkit.custom_ops.engine.errors import LoadError
from tftoolkit.custom_ops.engine.schema import DTYPES, Argument, Attribute, presence
from tftoolkit.custom_ops.engine.shapes import output_shapes
from tftoolkit.errors import with_code

_PLATFORMS = {"CPU": "cpu", "CUDA": "CUDA"}
_lock = threading.Lock()
_targets: dict[Declaration, str] = {}


def as_jax(op: Callable[..., Any]) -> Callable[..., Any]:
    """An op (or a function made of ops, such as ``custom_ops.rms_norm``) as a JAX function.

    It takes what ``jnp.asarray`` takes; called with JAX arrays the op does the same. Works under ``jax.jit`` and,
    where the op's gradient is made of ops of this package (and of operations that JAX arrays support), under
    ``jax.grad``; elsewhere that raises NotImplementedError. ``jax.vmap`` maps one element after the other.

    Raises ValueError when shapes or dtypes do not fit the schema, LoadError when there is no kernel.
    """

    @functools.wraps(op)
    def function(*inputs: Any, **attributes: Any) -> Any:
        arrays = [
            value if value is None else [jnp.asarray(item) for item in value] if isinstance(value, list | tuple)
            else jnp.asarray(value)
            for value in inputs
        ]  # fmt: skip
        return op(*arrays, **attributes)

    return function


def call(op: Declaration, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Calls the op with JAX arrays; ``inputs`` as its caller gave them, ``attributes`` complete and checked."""
    chosen = {item.type: jnp.dtype(attributes[item.name]) for item in op.schema.dtype_attributes}
    shapes = [
        None if value is None else [tuple(item.shape) for item in value] if argument.variadic else tuple(value.shape)
        for argument, value in zip(op.schema.inputs, inputs, strict=True)
    ]
    integers = {
        item.name: attributes[item.name] for item in op.schema.attributes if item.type in ("i32", "i64", "bool")
    }
    try:
        dtypes = _bind_dtypes(op, inputs) | chosen
        results = output_shapes(op.schema, shapes, integers)
    except ValueError as error:
        raise ValueError(with_code(f"{op.__name__}: {error}", "op-input")) from None
    flat: list[Any] = []
    kernel_attributes = {
        item.name: _ffi_value(item, attributes[item.name]) for item in op.schema.attributes if not item.choices
    }
    for argument, value in zip(op.schema.inputs, inputs, strict=True):
        if argument.optional:
            kernel_attributes[presence(argument)] = np.bool_(value is not None)
            value = jnp.zeros([0], _resolve(argument, dtypes)) if value is None else value
        flat += list(value) if argument.variadic else [value]
    declared: list[jax.ShapeDtypeStruct] = []
    for output, shape in zip(op.schema.outputs, results, strict=True):
        dtype = _resolve(output, dtypes)
        for one in shape if isinstance(shape, list) else [shape]:
            declared.append(jax.ShapeDtypeStruct(one, dtype))
    length = next((len(value) for value, a in zip(inputs, op.schema.inputs, strict=True) if a.variadic), 0)
    node = _Node(op, kernel_attributes, {"N": length, **chosen}, tuple(declared), _aliases(op, length))
    return op.group_outputs(node(*flat), length, attributes)


class _Node:
    """One call of an op with fixed attributes and shapes; differentiable through the op's registered gradient."""

    def __init__(
        self,
        op: Declaration,
        attributes: dict[str, Any],
        others: dict[str, Any],  # that gradients see and kernels do not
        declared: tuple[jax.ShapeDtypeStruct, ...],
        aliases: dict[int, int],
    ) -> None:
        self.op = op
        self.attributes = attributes | others
        self._kernel = attributes
        self._call = jax.ffi.ffi_call(
            _target(op), declared, input_output_aliases=aliases, vmap_method="sequential",
            has_side_effect=op.schema.stateful,
        )  # fmt: skip

    def __call__(self, *flat: Any) -> tuple[Any, ...]:
        differentiable = jax.custom_vjp(lambda *flat: tuple(self._call(*flat, **self._kernel)))
        differentiable.defvjp(self._forward, self._backward)
        outputs: tuple[Any, ...] = differentiable(*flat)
        return outputs

    def _forward(self, *flat: Any) -> tuple[tuple[Any, ...], tuple[Any, Any]]:
        outputs = self(*flat)  # not the bare call: a second derivative goes through here
        return outputs, (flat, outputs)

    def _backward(self, residuals: tuple[Any, Any], output_gradients: Sequence[Any]) -> tuple[Any, ...]:
        inputs, outputs = residuals
        op = self.op
        if op.gradient_function is None or op.differentiates_reference:
            reason = (
                "has no gradient" if op.gradient_function is None else "takes its gradient from a TensorFlow function"
            )
            raise NotImplementedError(f"{op.name} {reason}, so JAX cannot differentiate it here")
        try:
            flat = op.input_gradients(_View(self, inputs, outputs), output_gradients)
        except Exception as error:
            raise NotImplementedError(
                f"the gradient of {op.name} cannot be expressed in JAX (it may use TensorFlow functions): {error}"
            ) from error
        return tuple(_cotangent(gradient, value) for gradient, value in zip(flat, inputs, strict=True))


class _View:
    """A node as gradient functions see it."""

    def __init__(self, node: _Node, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._attributes = node.attributes

    def get_attr(self, name: str) -> Any:
        value = self._attributes[name]
        return value.item() if isinstance(value, np.generic) else value


def _cotangent(gradient: Any, value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value) if gradient is None else gradient
    return np.zeros(value.shape, jax.dtypes.float0)  # what JAX wants for integers


def _target(op: Declaration) -> str:
    """Registers the op's handlers with JAX once and returns the custom call's name."""
    with _lock:
        if op in _targets:
            return _targets[op]
        if not op.handlers:
            raise LoadError(f"{op.name} has no kernel", code="op-no-kernel")
        name = f"{op.library.name}>{op.name}"
        taken = set(_targets.values())
        name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
        for platform, address in op.handlers.items():
            jax.ffi.register_ffi_target(name, _capsule(address), platform=_PLATFORMS[platform])
        _targets[op] = name
        return name


def _capsule(address: int) -> Any:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(address, b"xla._CUSTOM_CALL_TARGET", None)


def _bind_dtypes(op: Declaration, inputs: Sequence[Any]) -> dict[str, Any]:
    """The dtype variables. Raises ValueError when an input's dtype does not fit the schema."""
    bound: dict[str, Any] = {}
    for argument, value in zip(op.schema.inputs, inputs, strict=True):
        if value is None and not argument.optional:
            raise TypeError(f"{op.__name__}: {argument.name} must be given; the signature is {op}")
        for array in value if argument.variadic else [] if value is None else [value]:
            allowed = op.schema.dtype_vars.get(argument.dtype, (argument.dtype,))
            if array.dtype.name not in [DTYPES[name] for name in allowed]:
                raise ValueError(f"{argument.name} must be {' or '.join(allowed)}, got {array.dtype.name}")
            known = bound.setdefault(argument.dtype, array.dtype)
            if known != array.dtype:
                raise ValueError(f"{argument.name} is {array.dtype.name}, but {argument.dtype} is {known.name}")
    for variable, choices in op.schema.dtype_vars.items():  # that of an input which was left out
        bound.setdefault(variable, jnp.dtype(DTYPES[choices[0]]))
    return bound


def _resolve(argument: Argument, dtypes: Mapping[str, Any]) -> Any:
    return dtypes[argument.dtype] if argument.dtype in dtypes else jnp.dtype(DTYPES[argument.dtype])


_NUMPY = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64, "bool": np.bool_}


def _ffi_value(attribute: Attribute, value: Any) -> Any:
    """The attribute in the form the kernel's binding wants; see host/attributes.h for lists."""
    kind = attribute.scalar_type
    if kind == "str":
        return "".join(f"{item}\0" for item in value) if attribute.is_list else value
    if attribute.is_list:
        return np.array(value, np.int8 if kind == "bool" else _NUMPY[kind])
    return _NUMPY[kind](value)


@functools.cache
def _aliases(op: Declaration, length: int) -> dict[int, int]:
    """Flat input → flat output that takes its place."""
    first_input, first_output = {}, {}
    position = 0
    for argument in op.schema.inputs:
        first_input[argument.name] = position
        position += length if argument.variadic else 1
    position = 0
    for output in op.schema.outputs:
        first_output[output.name] = position
        position += length if output.variadic else 1
    return {
        first_input[output.alias] + i: first_output[output.name] + i
        for output in op.schema.outputs
        if output.alias
        for i in range(length if output.variadic else 1)
    }
