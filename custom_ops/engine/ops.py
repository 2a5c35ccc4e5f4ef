"""Ops as Python callables. Needs neither TensorFlow nor JAX: ``tf_host`` and ``jax_host`` load on first use."""

from __future__ import annotations

import collections
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine.schema import Schema, presence

if TYPE_CHECKING:
    from tftoolkit.custom_ops.engine.library import OpLibrary


def find(op_type: str) -> Op | None:
    """The op with this TensorFlow name, such as "TfToolkit>RmsNorm", or None if none was used in this process."""
    from tftoolkit.custom_ops.engine import tf_host

    return tf_host.find(op_type)


def snake_case(name: str) -> str:
    """RmsNorm → rms_norm."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Op:
    """A compiled op: ``op(x, gamma, epsilon=1e-6)`` returns a tensor, a list, or a named tuple of them.

    Inputs are whatever TensorFlow converts to a tensor (a list of them for ``*name``, None for an absent ``name?``), or
    JAX arrays; attributes are Python values and go by keyword. In TensorFlow it works eagerly, in ``tf.function``,
    under ``jit_compile=True``, in ``tf.vectorized_map`` and through a SavedModel; in JAX also under ``jax.jit``.

    Attributes:
      schema: what was declared; also the signature that ``help`` and ``str`` show.
      is_plain: it has neither lists nor optional inputs.
      reference_function, gradient_function: what ``reference`` and ``gradient`` were given, or None.

    Raises ``tf.errors.InvalidArgumentError`` (in JAX and while a graph is built ValueError) when ranks or dimensions do
    not fit the schema, TypeError for missing, unknown or ill-typed arguments.
    """

    def __init__(self, library: OpLibrary, name: str) -> None:
        self.library = library
        self.name = name
        self.schema: Schema = library.schemas[name]
        self.handlers: Mapping[str, int] = library.handlers[name]
        self.reference_function: Callable[..., Any] | None = None
        self.gradient_function: Callable[..., Any] | None = None
        self.differentiates_reference = False
        self.__name__ = snake_case(name)
        self.__doc__ = f"{self}\n\nA compiled op of library {library.name}, {library.path.name}."
        self.__signature__ = _signature(self.schema)
        self._attributes = {attribute.name: attribute for attribute in self.schema.attributes}
        outputs = [output.name for output in self.schema.outputs]
        self.output_type = collections.namedtuple(name, outputs)  # type: ignore[misc]
        self.is_plain = not self.schema.has_lists and not self.schema.optional_inputs
        if "tensorflow" in sys.modules:  # else on first use, so that JAX users need neither TensorFlow nor its host
            _ = self.tf_name

    def __str__(self) -> str:
        return f"{self.__name__}{self.schema}"

    __repr__ = __str__

    @property
    def tf_name(self) -> str:
        """The op's type in TensorFlow graphs; registers it there on first use."""
        from tftoolkit.custom_ops.engine import tf_host

        return tf_host.register(self)

    def __call__(self, *inputs: Any, name: str | None = None, **keywords: Any) -> Any:
        if len(inputs) != len(self.schema.inputs) or not keywords.keys() <= self._attributes.keys():
            inputs, keywords = self._bind(inputs, keywords)
        attributes = self._complete(keywords)
        if "jax" in sys.modules and _is_jax(inputs):
            from tftoolkit.custom_ops.engine import jax_host

            return jax_host.call(self, inputs, attributes)
        from tftoolkit.custom_ops.engine import tf_host

        return tf_host.call(self, inputs, attributes, name)

    def reference(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: ``function(x, ..., *, attribute)`` computes the same in plain TensorFlow ops, for any rank."""
        self.reference_function = function
        return function

    def gradient(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator: ``function(op, *output_gradients) -> input gradients``, as for ``tf.RegisterGradient``.

        ``op`` has ``inputs``, ``outputs`` (lists laid flat) and ``get_attr(name)``.
        """
        if self.gradient_function is not None:
            raise ValueError(f"{self.name} has a gradient already")
        self.gradient_function = function
        return function

    def differentiate_reference(self) -> None:
        """Makes the reference's own gradient the op's: right to any order, at plain TensorFlow's speed."""

        def gradient(node: Any, *output_gradients: Any) -> Any:
            from tftoolkit.custom_ops.engine import tf_host

            return tf_host.differentiate_reference(self, node, *output_gradients)

        self.differentiates_reference = True
        self.gradient(gradient)

    def run_reference(self, *inputs: Any, **attributes: Any) -> Any:
        """The reference, called like the op. Raises LookupError when there is none."""
        if self.reference_function is None:
            raise LookupError(
                f"{self.name} has no reference: write one in TensorFlow ops under @{self.__name__}.reference"
            )
        outputs = self.reference_function(*inputs, **self._complete(attributes))
        return outputs if len(self.schema.outputs) == 1 else self.output_type(*outputs)

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

    def group_outputs(self, flat: Sequence[Any], list_length: int) -> Any:
        """A tensor, a list, or a named tuple of these."""
        grouped: list[Any] = []
        position = 0
        for output in self.schema.outputs:
            if output.variadic:
                grouped.append(list(flat[position : position + list_length]))
                position += list_length
            else:
                grouped.append(flat[position])
                position += 1
        return grouped[0] if len(grouped) == 1 else self.output_type(*grouped)

    def flat_outputs(self, grouped: Any) -> list[Any]:
        """The opposite of ``group_outputs``."""
        parts = [grouped] if len(self.schema.outputs) == 1 else grouped
        flat: list[Any] = []
        for output, part in zip(self.schema.outputs, parts, strict=True):
            flat += list(part) if output.variadic else [part]
        return flat

    def _bind(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self.__signature__.bind(*inputs, **keywords).arguments
        except TypeError as error:
            raise TypeError(f"{error}; the signature is {self}") from None
        names = [argument.name for argument in self.schema.inputs]
        return tuple(bound.pop(argument, None) for argument in names), bound

    def _complete(self, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """All attributes, checked."""
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


def _is_jax(inputs: Iterable[Any]) -> bool:
    """Whether any of the inputs is a JAX array or tracer."""
    array = sys.modules["jax"].Array
    return any(
        isinstance(item, array) for value in inputs for item in (value if isinstance(value, list | tuple) else [value])
    )
