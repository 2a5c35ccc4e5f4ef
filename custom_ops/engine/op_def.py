"""An op's declaration in the words of TensorFlow and of the op host: OpDef, attribute values, wire form."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.core.framework import op_def_pb2

from tftoolkit.custom_ops.engine.schema import (
    DTYPES,
    REST,
    SCALAR_TYPES,
    Argument,
    Attribute,
    Dim,
    Expression,
    Schema,
    presence,
)


def op_def(name: str, schema: Schema) -> op_def_pb2.OpDef:
    """TensorFlow's own declaration of the op."""
    definition = op_def_pb2.OpDef(name=name, is_stateful=schema.stateful)
    for arguments, args in ((schema.inputs, definition.input_arg), (schema.outputs, definition.output_arg)):
        for argument in arguments:
            arg = args.add(name=argument.name)
            if argument.dtype in DTYPES:
                arg.type = dtype_of(argument.dtype).as_datatype_enum
            else:
                arg.type_attr = argument.dtype
            if argument.variadic:
                arg.number_attr = LIST_LENGTH
    if schema.has_lists:
        definition.attr.add(name=LIST_LENGTH, type="int", has_minimum=True, minimum=1)
    defaults = {attribute.type: attribute.default for attribute in schema.dtype_attributes}
    for variable, choices in schema.dtype_vars.items():
        attr = definition.attr.add(name=variable, type="type")
        attr.allowed_values.list.type.extend(dtype_of(choice).as_datatype_enum for choice in choices)
        if defaults.get(variable):
            attr.default_value.type = tf.dtypes.as_dtype(defaults[variable]).as_datatype_enum
    for attribute in kernel_attributes(schema):
        _add_attribute(definition, attribute)
    return definition


LIST_LENGTH = "N"
# f64 as text, because TensorFlow's float attributes have 32 bits; see host/attributes.h.
_TF_ATTRIBUTES = {"f32": "float", "f64": "string", "i32": "int", "i64": "int", "bool": "bool", "str": "string"}
_VALUE_FIELDS = {"float": "f", "int": "i", "bool": "b", "string": "s"}


def kernel_attributes(schema: Schema) -> list[Attribute]:
    """The attributes that nodes and kernels have, sorted by name: those declared, and one for each optional input.

    Dtypes are not among them: a kernel sees them in its outputs.
    """
    hidden = [Attribute(presence(argument), "bool") for argument in schema.optional_inputs]
    declared = [attribute for attribute in schema.attributes if not attribute.choices]
    return sorted([*declared, *hidden], key=lambda attribute: attribute.name)


def node_name(attribute: Attribute) -> str:
    """How TensorFlow's node calls an attribute: a dtype goes by its variable."""
    return attribute.type if attribute.choices else attribute.name


def store_attribute(attribute: Attribute, checked: Any) -> Any:
    """An attribute's value (as ``convert`` gives it) in the form TensorFlow stores."""
    if attribute.choices:
        return tf.dtypes.as_dtype(checked).as_datatype_enum
    if attribute.scalar_type == "f64":
        return [repr(item) for item in checked] if isinstance(checked, tuple) else repr(checked)
    return list(checked) if isinstance(checked, tuple) else checked


def read_attribute(attribute: Attribute, stored: Any) -> Any:
    """The Python value of an attribute as it stands in a node (``op.get_attr``)."""
    if attribute.choices:
        return tf.dtypes.as_dtype(stored).name

    def scalar(value: Any) -> Any:
        text = value.decode() if isinstance(value, bytes) else value
        return float(text) if attribute.scalar_type == "f64" else text

    return [scalar(value) for value in stored] if attribute.is_list else scalar(stored)


def _add_attribute(definition: op_def_pb2.OpDef, attribute: Attribute) -> None:
    base = _TF_ATTRIBUTES[attribute.scalar_type]
    attr = definition.attr.add(name=attribute.name, type=f"list({base})" if attribute.is_list else base)
    if attribute.default is None:
        return
    stored = store_attribute(attribute, attribute.default)
    encoded = [item.encode() if base == "string" else item for item in (stored if attribute.is_list else [stored])]
    if attribute.is_list:
        attr.default_value.list.SetInParent()  # also when it is empty
        getattr(attr.default_value.list, _VALUE_FIELDS[base]).extend(encoded)
    else:
        setattr(attr.default_value, _VALUE_FIELDS[base], encoded[0])


def dtype_of(name: str) -> tf.DType:
    return tf.dtypes.as_dtype(DTYPES[name])


def wire_form(schema: Schema) -> str:
    """The schema's shapes for the host; the format stands in host/signature.h."""
    attributes = kernel_attributes(schema)
    attribute_index = {attribute.name: i for i, attribute in enumerate(attributes)}
    outside_lists = [name for name in schema.dim_names if name in schema.global_dims]
    names = outside_lists + [name for name in schema.dim_names if name not in schema.global_dims]

    def term(item: int | str) -> str:
        if isinstance(item, int):
            return f"0 {item}"
        if item in names:
            return f"1 {names.index(item)}"
        return f"2 {attribute_index[item]}" if item in attribute_index else f"3 {ord(item)}"

    def dim(value: Dim) -> str:
        if value == REST:
            return "0"
        postfix = value.postfix if isinstance(value, Expression) else (value,)
        return " ".join([str(len(postfix)), *map(term, postfix)])

    def argument(value: Argument) -> str:
        present = attribute_index[presence(value)] if value.optional else -1
        alias = [item.name for item in schema.inputs].index(value.alias) if value.alias else -1
        head = f"{value.name} {int(value.variadic)} {present} {alias} {len(value.dims)}"
        return " ".join([head, *map(dim, value.dims)])

    counts = (len(schema.inputs), len(schema.outputs), len(attributes), len(names), len(outside_lists))
    words = [*map(str, counts), str(int(REST in schema.global_dims))]
    words += [argument(value) for value in [*schema.inputs, *schema.outputs]]
    for attribute in attributes:
        words.append(f"{attribute.name} {SCALAR_TYPES.index(attribute.scalar_type) + 16 * attribute.is_list}")
    return " ".join([*words, *names])
