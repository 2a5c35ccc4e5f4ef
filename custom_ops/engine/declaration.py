"""What a library declares of an op: all that a host must know to call it. Needs neither TensorFlow nor JAX."""

from __future__ import annotations

import collections
import inspect
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tftoolkit.custom_ops.engine.schema import Argument, Schema, presence


class Library(Protocol):
    """What an op asks of the library that it comes from."""

    name: str
    path: Path
    schemas: dict[str, Schema]
    handlers: dict[str, dict[str, int]]

    def op(self, name: str) -> Any: ...


class Declaration:
    """An op as it was declared, with its Python functions.

    Attributes:
      schema: what was declared; also the signature that ``help`` and ``str`` show.
      handlers: platform ("CPU", "CUDA") → address of the FFI handler.
      is_plain: it has neither lists nor optional inputs or outputs.
      whole_inputs: places of the inputs that may be whole numbers or bools.
      reference_function, gradient_function: what ``reference`` and ``gradient`` were given, or None.
    """

    def __init__(self, library: Library, name: str) -> None:
        self.library = library
        self.name = name
        self.schema: Schema = library.schemas[name]
        self.handlers: Mapping[str, int] = library.handlers[name]
        self.reference_function: Callable[..., Any] | None = None
        self.gradient_function: Callable[..., Any] | None = None
        self.differentiates_reference = False
        self.takes_sparse_gradients = False
        self.__name__ = attribute_name(name)
        self.__signature__ = _signature(self.schema)
        self._attributes = {attribute.name: attribute for attribute in self.schema.attributes}
        outputs = [output.name for output in self.schema.outputs]
        self.output_type = collections.namedtuple(name, outputs)  # type: ignore[misc]
        self.is_plain = not (self.schema.has_lists or self.schema.optional_inputs or self.schema.optional_outputs)
        self.whole_inputs = [i for i, argument in enumerate(self.schema.inputs) if _may_be_whole(self.schema, argument)]

    def __str__(self) -> str:
        return f"{self.__name__}{self.schema}"

    __repr__ = __str__

    def complete(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """All attributes, checked. Raises TypeError for missing, unknown or ill-typed ones."""
        complete: dict[str, Any] = {}
        for key, attribute in self._attributes.items():
            if key in keywords:
                complete[key] = attribute.convert(keywords[key])
            elif attribute.default is not None:
                complete[key] = attribute.default
            else:
                raise TypeError(f"missing attribute {key}; the signature is {self}")
        unknown = keywords.keys() - self._attributes.keys()
        if unknown:
            raise TypeError(f"unknown attribute {', '.join(sorted(unknown))}; the signature is {self}")
        return complete

    def run_reference(self, /, *inputs: Any, **attributes: Any) -> Any:
        """The reference, called like the op. Raises LookupError when there is none."""
        if self.reference_function is None:
            raise LookupError(
                f"{self.name} has no reference: write one in TensorFlow ops under @{self.__name__}.reference"
            )
        outputs = self.reference_function(*inputs, **self.complete(attributes))
        return outputs if len(self.schema.outputs) == 1 else self.output_type(*outputs)

    def input_gradients(self, node: Any, output_gradients: Sequence[Any]) -> list[Any]:
        """What the gradient function gives at a node, as a list. Raises ValueError: not one for each input.

        TensorFlow would call that an internal error.
        """
        assert self.gradient_function is not None
        found = self.gradient_function(node, *output_gradients)
        gradients = list(found) if isinstance(found, list | tuple) else [found]
        if len(gradients) != len(node.inputs):
            raise ValueError(
                f"the gradient of {self.name} returned {len(gradients)} for {len(node.inputs)} input(s); it must "
                f"return one for each, None where an input has none; the signature is {self}"
            )
        return gradients

    # Between the caller's view (lists, None, named tuples) and the flat one of graphs and kernels

    def group_inputs(self, flat: Sequence[Any], get_attr: Callable[[str], Any]) -> list[Any]:
        """A node's inputs as the op's caller gives them; ``get_attr`` reads the node's attributes."""
        grouped: list[Any] = []
        position = 0
        for argument in self.schema.inputs:
            if argument.variadic:
                length = get_attr("N")
                grouped.append(list(flat[position : position + length]))
                position += length
            else:
                absent = argument.optional and not get_attr(presence(argument))
                grouped.append(None if absent else flat[position])
                position += 1
        return grouped

    def group_outputs(self, flat: Sequence[Any], list_length: int, attributes: Mapping[str, Any]) -> Any:
        """A tensor, a list, or a named tuple of these, with None for optional outputs that nobody asked for."""
        grouped: list[Any] = []
        position = 0
        for output in self.schema.outputs:
            if output.variadic:
                grouped.append(list(flat[position : position + list_length]))
                position += list_length
            else:
                absent = output.optional and not attributes[presence(output)]
                grouped.append(None if absent else flat[position])
                position += 1
        return grouped[0] if len(grouped) == 1 else self.output_type(*grouped)

    def flat_outputs(self, grouped: Any) -> list[Any]:
        """The opposite of ``group_outputs``."""
        parts = [grouped] if len(self.schema.outputs) == 1 else grouped
        flat: list[Any] = []
        for output, part in zip(self.schema.outputs, parts, strict=True):
            flat += list(part) if output.variadic else [part]
        return flat


def snake_case(name: str) -> str:
    """RmsNorm → rms_norm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def camel_case(name: str) -> str:
    """my_ops → MyOps; what begins with a capital letter stays as it is."""
    return name if name[:1].isupper() else "".join(part[:1].upper() + part[1:] for part in name.split("_"))


# Public attributes of libraries: an op of that name gets an underscore behind it, as one named like a keyword does.
LIBRARY_ATTRIBUTES = ("ffi_version", "handlers", "made", "name", "op", "path", "register", "schemas")


def attribute_name(name: str) -> str:
    """How an op is called in Python: RmsNorm → rms_norm, Path → path_, Lambda → lambda_."""
    short = snake_case(name)
    return f"{short}_" if short in LIBRARY_ATTRIBUTES or keyword.iskeyword(short) else short


def _may_be_whole(schema: Schema, argument: Argument) -> bool:
    return any(
        dtype[0] in "iu" or dtype == "bool" for dtype in schema.dtype_vars.get(argument.dtype, (argument.dtype,))
    )


def _signature(schema: Schema) -> inspect.Signature:
    parameter = inspect.Parameter
    kind = parameter.POSITIONAL_OR_KEYWORD
    # An optional input may be left out where no needed one follows.
    needed = max(i for i, argument in enumerate(schema.inputs) if not argument.optional)
    parameters = [
        parameter(argument.name, kind, default=None if i > needed else parameter.empty)
        for i, argument in enumerate(schema.inputs)
    ]
    for attribute in schema.attributes:
        default = parameter.empty if attribute.default is None else attribute.default
        parameters.append(parameter(attribute.name, parameter.KEYWORD_ONLY, default=default))
    return inspect.Signature(parameters)
