"""What an op's declaration says: inputs, attributes, outputs, and how their shapes hang together.

``schema_parser.parse`` reads the text form; ``str(schema)`` writes it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Schema name → TensorFlow/NumPy name.
DTYPES = {
    "bool": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "c64": "complex64", "c128": "complex128",
}  # fmt: skip

SCALAR_TYPES = ("f32", "f64", "i32", "i64", "bool", "str")
ATTRIBUTE_TYPES = (*SCALAR_TYPES, *(f"{name}[]" for name in SCALAR_TYPES))
REST = "..."
PROPERTIES = ("batchable", "stateful")  # words after the outputs

Scalar = float | int | bool | str
AttributeValue = Scalar | tuple[Scalar, ...]

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


@dataclass(frozen=True)
class Expression:
    """An integer expression over dimension names and integer attributes, in postfix order; ``/`` rounds down."""

    postfix: tuple[int | str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What it refers to."""
        return tuple(item for item in self.postfix if isinstance(item, str) and item not in _OPERATORS)

    def evaluate(self, values: Mapping[str, int]) -> int:
        """Its value. Raises ValueError for a division by zero."""
        stack: list[int] = []
        for item in self.postfix:
            if isinstance(item, int):
                stack.append(item)
            elif item in _OPERATORS:
                right, left = stack.pop(), stack.pop()
                if item == "/" and right == 0:
                    raise ValueError(f"{self} divides by zero")
                stack.append(_OPERATORS[item](left, right))
            else:
                stack.append(values[item])
        return stack.pop()

    def __str__(self) -> str:
        stack: list[tuple[str, int]] = []  # text and precedence
        for item in self.postfix:
            if item in _OPERATORS:
                precedence = 1 if item in ("+", "-") else 2
                (right, right_precedence), (left, left_precedence) = stack.pop(), stack.pop()
                left = f"({left})" if left_precedence < precedence else left
                right = f"({right})" if right_precedence <= precedence else right  # operators bind to the left
                stack.append((f"{left}{item}{right}", precedence))
            else:
                stack.append((str(item), 3))
        return stack.pop()[0]


# A size, a name, `...`, or an expression: of inputs a name plus or minus a number, of outputs any, of attributes too.
Dim = int | str | Expression


def named(dim: Dim) -> tuple[str, int] | None:
    """The name in an input's dimension, and what is added to it: n-1 → (n, -1). None for sizes and ``...``."""
    if isinstance(dim, Expression):
        name, number, sign = dim.postfix
        return str(name), int(number) if sign == "+" else -int(number)
    return (dim, 0) if isinstance(dim, str) and dim != REST else None


@dataclass(frozen=True)
class Argument:
    """An input or output.

    Attributes:
      dtype: a name of ``DTYPES`` or a dtype variable.
      variadic: a list of tensors. All lists of an op have the same length, and names that occur in lists only are bound
        anew for each place in the list.
      optional: an input that may be None; an output that is None unless asked for (``presence`` names the attribute).
      alias: the input whose buffer this output takes over: it is updated in place.
    """

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    variadic: bool = False
    optional: bool = False
    alias: str | None = None

    def __str__(self) -> str:
        mark, query = "*" if self.variadic else "", "?" if self.optional else ""
        alias = f" = {self.alias}" if self.alias else ""
        return f"{mark}{self.name}{query}: {self.dtype}[{' '.join(map(str, self.dims))}]{alias}"


@dataclass(frozen=True)
class Attribute:
    """A value fixed when the op is called.

    Attributes:
      type: one of ``ATTRIBUTE_TYPES``, or a dtype variable that no input has: its value, a NumPy name, is that dtype.
      default: None where the caller must give it.
      choices: of a dtype, those allowed, as in the schema.
    """

    name: str
    type: str
    default: AttributeValue | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.default is None:
            return f"{self.name}: {self.type}"
        return f"{self.name}: {self.type} = {_short(self.default) if self.choices else _written(self.default)}"

    @property
    def is_list(self) -> bool:
        return self.type.endswith("[]")

    @property
    def scalar_type(self) -> str:
        return self.type.removesuffix("[]")

    def convert(self, value: Any) -> AttributeValue:
        """Checks a value given by a caller. Raises TypeError or ValueError that names the attribute."""
        if self.choices:
            return self._dtype(value)
        if not self.is_list:
            return self._scalar(value)
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise TypeError(f"attribute {self.name} must be a list of {self.scalar_type}, got {value!r}")
        return tuple(self._scalar(item) for item in value)

    def _dtype(self, value: Any) -> str:
        """The NumPy name of a dtype that TensorFlow, NumPy, JAX or the schema language names."""
        name = getattr(value, "name", None) or getattr(value, "__name__", None) or value
        name = DTYPES.get(name, name) if isinstance(name, str) else name
        allowed = [DTYPES[choice] for choice in self.choices]
        if name not in allowed:
            raise TypeError(f"attribute {self.name} must be one of {', '.join(allowed)}, got {value!r}")
        return str(name)

    def _scalar(self, value: Any) -> Scalar:
        kind = self.scalar_type
        accepted: dict[str, tuple[type, ...]] = {"bool": (bool,), "str": (str,), "i32": (int,), "i64": (int,)}
        value = value.item() if hasattr(value, "item") else value  # NumPy scalars
        if not isinstance(value, accepted.get(kind, (float, int))) or (isinstance(value, bool) and kind != "bool"):
            raise TypeError(f"attribute {self.name} must be {self.type}, got {value!r} of type {type(value).__name__}")
        if isinstance(value, int) and kind in ("i32", "i64"):
            bits = int(kind[1:])
            if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                raise ValueError(f"attribute {self.name} must fit into {bits} bits, got {value}")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"attribute {self.name} must not hold a zero byte, got {value!r}")
        checked: Scalar = value
        return float(checked) if kind in ("f32", "f64") else checked


def _short(dtype: AttributeValue) -> str:
    """float32 → f32."""
    return next(short for short, name in DTYPES.items() if name == dtype)


def _written(value: AttributeValue) -> str:
    """As the parser reads it: lists in brackets."""
    return f"[{', '.join(map(repr, value))}]" if isinstance(value, tuple) else repr(value)


@dataclass(frozen=True)
class Schema:
    """A parsed schema.

    Attributes:
      dtype_vars: dtype variable → the dtypes it may stand for.
      batchable: one call on stacked inputs gives the stacked outputs of single calls, with one more dimension in front
        of every ``...``.
      stateful: a call does, or depends on, more than its inputs say, so hosts may neither fold, merge nor drop it.
    """

    dtype_vars: Mapping[str, tuple[str, ...]]
    inputs: tuple[Argument, ...]
    attributes: tuple[Attribute, ...]
    outputs: tuple[Argument, ...]
    batchable: bool = False
    stateful: bool = False
    dim_names: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        found = (named(dim) for argument in self.inputs for dim in argument.dims)
        object.__setattr__(self, "dim_names", tuple(dict.fromkeys(one[0] for one in found if one)))

    def __str__(self) -> str:
        types = ", ".join(f"{name}: {' | '.join(choices)}" for name, choices in self.dtype_vars.items())
        implied = {presence(output) for output in self.optional_outputs}
        attributes = [str(attribute) for attribute in self.attributes if attribute.name not in implied]
        inputs = ", ".join([*map(str, self.inputs), *(["*"] if attributes else []), *attributes])
        words = "".join(f" {word}" for word in PROPERTIES if getattr(self, word))
        return (f"<{types}>" if types else "") + f"({inputs}) -> ({', '.join(map(str, self.outputs))}){words}"

    @property
    def optional_inputs(self) -> tuple[Argument, ...]:
        return tuple(argument for argument in self.inputs if argument.optional)

    @property
    def dtype_attributes(self) -> tuple[Attribute, ...]:
        """Those by which callers choose the dtype of outputs."""
        return tuple(attribute for attribute in self.attributes if attribute.choices)

    @property
    def optional_outputs(self) -> tuple[Argument, ...]:
        return tuple(output for output in self.outputs if output.optional)

    @property
    def has_lists(self) -> bool:
        """Whether there is a variadic input."""
        return any(argument.variadic for argument in self.inputs)

    @property
    def global_dims(self) -> frozenset[str]:
        """Names (and ``...``) that are bound once per call: those that occur outside lists."""
        dims = [dim for argument in self.inputs if not argument.variadic for dim in argument.dims]
        return frozenset((named(dim) or (str(dim), 0))[0] for dim in dims if not isinstance(dim, int))


def presence(argument: Argument) -> str:
    """The bool attribute that tells a kernel whether an optional input was given, or an optional output is wanted."""
    return f"has_{argument.name}"
