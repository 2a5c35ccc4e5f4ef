"""Ops as Python callables: calling, references, gradients, and what TensorFlow's transformations need to know."""

from __future__ import annotations

import collections
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context, execute
from tensorflow.python.framework import op_def_library
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops.parallel_for import pfor

# TensorFlow's generated op wrappers are built on these two.
from tensorflow.python.eager import core as _core  # isort: skip
from tensorflow.python import pywrap_tfe as _tfe  # isort: skip

from tftoolkit.custom_ops import host
from tftoolkit.custom_ops.library import OpLibrary
from tftoolkit.custom_ops.schema import REST, Schema

_ops: dict[str, Op] = {}


def find(op_type: str) -> Op | None:
    """The op with this TensorFlow name, such as "TfToolkit>RmsNorm", or None."""
    return _ops.get(op_type)


def op_of(library: OpLibrary, name: str) -> Op:
    """The library's op, made once even if its file is opened several times. Raises LoadError for a clash of names."""
    return _ops.get(host.register(library, name)) or Op(library, name)


def snake_case(name: str) -> str:
    """RmsNorm → rms_norm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Op:
    """A compiled op: ``op(x, gamma, epsilon=1e-6)`` returns a tensor, or a named tuple of tensors.

    Inputs can be anything TensorFlow converts to a tensor; attributes are Python values and go by keyword. Works
    eagerly, in ``tf.function``, under ``jit_compile=True``, in ``tf.vectorized_map`` and through a SavedModel.

    Raises ``tf.errors.InvalidArgumentError`` when ranks or dimensions do not fit the schema, TypeError for missing or
    unknown arguments.
    """

    def __init__(self, library: OpLibrary, name: str) -> None:
        self.library = library
        self.name = name
        self.schema: Schema = library.schemas[name]
        self.tf_name = host.register(library, name)
        self.__name__ = snake_case(name)
        self.__signature__ = _signature(self.schema)
        self._attributes = {attribute.name: attribute for attribute in self.schema.attributes}
        self._defaults: dict[str, object] = {
            attribute.name: host.attribute_value(attribute, attribute.default)
            for attribute in self.schema.attributes
            if attribute.default is not None
        }
        self._outputs = collections.namedtuple(name, [output.name for output in self.schema.outputs])  # type: ignore[misc]
        self._reference: Callable[..., Any] | None = None
        self.has_gradient = False
        _ops[self.tf_name] = self
        _register_pfor(self)

    def __str__(self) -> str:
        return f"{self.__name__}{self.schema}"

    __repr__ = __str__

    def __call__(self, *inputs: Any, name: str | None = None, **keywords: Any) -> Any:
        if len(inputs) != len(self.schema.inputs) or not keywords.keys() <= self._attributes.keys():
            inputs, keywords = self._bind(inputs, keywords)
        attributes = self._convert(keywords)
        if not context.executing_eagerly():
            return self._in_graph(inputs, attributes, name)
        flat = [item for pair in attributes.items() for item in pair]
        try:
            outputs = _tfe.TFE_Py_FastPathExecute(context.context(), self.tf_name, name, *inputs, *flat)
        except _core._NotOkStatusException as error:
            tf_ops.raise_from_not_ok_status(error, name)
        except _core._FallbackException:
            # The fast path takes tensors and plain arrays only; this one converts everything else first.
            return self(*map(tf.convert_to_tensor, inputs), name=name, **keywords)
        return outputs if len(self.schema.outputs) == 1 else self._outputs(*outputs)

    def _in_graph(self, inputs: Sequence[Any], attributes: Mapping[str, object], name: str | None) -> Any:
        names = (argument.name for argument in self.schema.inputs)
        arguments = dict(zip(names, inputs, strict=True))
        _, _, op, _ = op_def_library._apply_op_helper(self.tf_name, name=name, **arguments, **attributes)
        if execute.must_record_gradient():
            flat = tuple(item for attr in op.op_def.attr for item in (attr.name, op.get_attr(attr.name)))
            execute.record_gradient(self.tf_name, op.inputs, flat, op.outputs)
        return op.outputs[0] if len(op.outputs) == 1 else self._outputs(*op.outputs)

    def _bind(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self.__signature__.bind(*inputs, **keywords).arguments
        except TypeError as error:
            raise TypeError(f"{error}; the signature is {self}") from None
        names = [argument.name for argument in self.schema.inputs]
        return tuple(bound.pop(argument) for argument in names), bound

    def _convert(self, keywords: Mapping[str, Any]) -> dict[str, object]:
        attributes = dict(self._defaults)
        for key, value in keywords.items():
            attributes[key] = host.attribute_value(self._attributes[key], value)
        if len(attributes) != len(self._attributes):
            missing = ", ".join(self._attributes.keys() - attributes.keys())
            raise TypeError(f"missing attribute {missing}; the signature is {self}")
        return attributes

    def reference(self, *inputs: Any, **attributes: Any) -> Any:
        """The same function in plain TensorFlow ops, or, given one function and nothing else, sets it (decorator).

        Returns what the op returns. Raises LookupError when the op has no reference.
        """
        if len(inputs) == 1 and inspect.isfunction(inputs[0]) and not attributes:
            self._reference = inputs[0]
            return inputs[0]
        if self._reference is None:
            raise LookupError(
                f"{self.tf_name} has no reference: write one in TensorFlow ops under @{self.__name__}.reference"
            )
        missing = {key: attribute.default for key, attribute in self._attributes.items() if key not in attributes}
        outputs = self._reference(*inputs, **missing, **attributes)
        return outputs if len(self.schema.outputs) == 1 else self._outputs(*outputs)

    def gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: registers ``function(op, *output_gradients)``, as ``tf.RegisterGradient`` does."""
        tf.RegisterGradient(self.tf_name)(function)
        self.has_gradient = True
        return function

    def differentiate_reference(self) -> None:
        """Registers the reference's own gradient as the op's: right to any order, at plain TensorFlow's speed."""

        def gradient(op: Any, *output_gradients: tf.Tensor) -> list[tf.Tensor | None]:
            attributes = {key: _read_attribute(op, key, attribute.type) for key, attribute in self._attributes.items()}
            inputs = [tf.identity(tensor) for tensor in op.inputs]
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = tf.nest.flatten(self.reference(*inputs, **attributes))
            return tape.gradient(outputs, inputs, output_gradients=list(output_gradients))

        self.gradient(gradient)


def _read_attribute(op: Any, name: str, kind: str) -> Any:
    value = op.get_attr(name)
    if kind in ("f64", "str"):
        value = value.decode() if isinstance(value, bytes) else value
    return float(value) if kind == "f64" else value


def _signature(schema: Schema) -> inspect.Signature:
    parameter = inspect.Parameter
    parameters = [parameter(argument.name, parameter.POSITIONAL_OR_KEYWORD) for argument in schema.inputs]
    for attribute in schema.attributes:
        default = parameter.empty if attribute.default is None else attribute.default
        parameters.append(parameter(attribute.name, parameter.KEYWORD_ONLY, default=default))
    return inspect.Signature(parameters)


def _register_pfor(op: Op) -> None:
    """Teaches ``tf.vectorized_map`` the op where stacking is just one more leading dimension of every ``...``.

    Elsewhere (an output that sums over ``...``, say) TensorFlow falls back to a loop by itself.
    """
    leading = [argument.dims[:1] == (REST,) for argument in op.schema.inputs]
    outputs_lead = all(argument.dims[:1] == (REST,) for argument in op.schema.outputs)

    def convert(pfor_input: Any) -> Any:
        stacked = [pfor_input.input(i)[1] for i in range(pfor_input.num_inputs)]
        if not outputs_lead or any(is_stacked and not can for is_stacked, can in zip(stacked, leading, strict=True)):
            raise pfor.ConversionNotImplementedError(f"{op} cannot take one more leading dimension")  # makes it a loop
        pfor_input.stack_inputs([i for i, can in enumerate(leading) if can])
        inputs = [pfor_input.input(i)[0] for i in range(pfor_input.num_inputs)]
        attributes = {key: _read_attribute(pfor_input.op, key, a.type) for key, a in op._attributes.items()}
        return [pfor.wrap(output, True) for output in tf.nest.flatten(op(*inputs, **attributes))]

    pfor.RegisterPFor(op.tf_name)(convert)
