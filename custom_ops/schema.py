"""The schema language of op declarations: one line that says an op's inputs, attributes and outputs.

Grammar (spaces are free)::

    schema     = [ "<" dtype_var { "," dtype_var } ">" ] "(" [ parameters ] ")" "->" "(" arguments ")"
    dtype_var  = NAME ":" dtype { "|" dtype }
    parameters = arguments [ "," "*" "," attributes ] | "*" "," attributes
    argument   = name ":" ( dtype | NAME ) "[" { dim } "]"
    dim        = "..." | integer | name
    attribute  = name ":" ( "f32" | "f64" | "i32" | "i64" | "bool" | "str" ) [ "=" literal ]

Dimensions that share a name must agree. ``...`` stands for any number of dimensions, at most once per argument, and is
the same list wherever it appears. Example::

    <T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], *, epsilon: f32 = 1e-6) -> (y: T[... d], inv_rms: f32[...])
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

# Schema name → TensorFlow/NumPy name.
DTYPES = {
    "bool": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
    "u8": "uint8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64", "c64": "complex64", "c128": "complex128",
}  # fmt: skip

ATTRIBUTE_TYPES = ("f32", "f64", "i32", "i64", "bool", "str")
REST = "..."

Dim = int | str
AttributeValue = float | int | bool | str


class SchemaError(ValueError):
    """A schema that cannot be read; the message shows the text with a mark under the column."""

    def __init__(self, text: str, column: int, reason: str) -> None:
        self.text, self.column, self.reason = text, column, reason
        super().__init__(f"column {column + 1}: {reason}\n  {text}\n  {' ' * column}^")


@dataclass(frozen=True)
class Argument:
    """An input or output: its dtype is a name of ``DTYPES`` or a dtype variable."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{' '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Attribute:
    """A value fixed when the op is called; ``default`` is None where the caller must give it."""

    name: str
    type: str
    default: AttributeValue | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.default is None else f" = {self.default!r}")

    def convert(self, value: Any) -> AttributeValue:
        """Checks a value given by a caller. Raises TypeError or ValueError that names the attribute."""
        accepted: dict[str, tuple[type, ...]] = {"bool": (bool,), "str": (str,), "i32": (int,), "i64": (int,)}
        types = accepted.get(self.type, (float, int))
        value = value.item() if hasattr(value, "item") else value  # NumPy scalars
        if not isinstance(value, types) or (isinstance(value, bool) and self.type != "bool"):
            raise TypeError(f"attribute {self.name} must be {self.type}, got {value!r} of type {type(value).__name__}")
        if isinstance(value, int) and self.type in ("i32", "i64"):
            bits = int(self.type[1:])
            if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
                raise ValueError(f"attribute {self.name} must fit into {bits} bits, got {value}")
        checked: AttributeValue = value
        return float(checked) if self.type in ("f32", "f64") else checked


@dataclass(frozen=True)
class Schema:
    """A parsed schema. ``dtype_vars`` maps each dtype variable to the dtypes it may stand for."""

    dtype_vars: Mapping[str, tuple[str, ...]]
    inputs: tuple[Argument, ...]
    attributes: tuple[Attribute, ...]
    outputs: tuple[Argument, ...]

    def __str__(self) -> str:
        types = ", ".join(f"{name}: {' | '.join(choices)}" for name, choices in self.dtype_vars.items())
        star = ["*"] if self.attributes else []
        inputs = ", ".join([*map(str, self.inputs), *star, *map(str, self.attributes)])
        return (f"<{types}>" if types else "") + f"({inputs}) -> ({', '.join(map(str, self.outputs))})"

    @property
    def dim_names(self) -> tuple[str, ...]:
        """The named dimensions, in order of first appearance."""
        dims = (dim for argument in self.inputs for dim in argument.dims)
        return tuple(dict.fromkeys(dim for dim in dims if isinstance(dim, str) and dim != REST))


def parse(text: str) -> Schema:
    """Reads a schema. Raises SchemaError, which names the column."""
    return _Parser(text).schema()


_TOKEN = re.compile(
    r"""\s*(?:(?P<arrow>->)|(?P<rest>\.\.\.)|(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
        |(?P<number>[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf\b|nan\b))
        |(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[<>():,\[\]|=*]))""",
    re.VERBOSE,
)
# Python keywords and the op's own `name` cannot be parameter names; TensorFlow wants lower case.
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = {
    "name",
    "and",
    "as",
    "def",
    "del",
    "for",
    "from",
    "if",
    "in",
    "is",
    "lambda",
    "not",
    "or",
    "return",
    "with",
}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokenize())
        self.position = 0
        self.dtype_vars: dict[str, tuple[str, ...]] = {}

    def _tokenize(self) -> Iterable[_Token]:
        position = 0
        end = len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                column = position + len(self.text[position:]) - len(self.text[position:].lstrip())
                raise SchemaError(self.text, column, f"unexpected character {self.text[column]!r}")
            kind = str(match.lastgroup)
            yield _Token(kind, match[kind], match.start(kind))
            position = match.end()
        yield _Token("end", "the end", end)

    @property
    def next(self) -> _Token:
        return self.tokens[self.position]

    def fail(self, reason: str, token: _Token | None = None) -> NoReturn:
        raise SchemaError(self.text, (token or self.next).column, reason)

    def take(self, kind: str) -> _Token:
        token = self.next
        if token.kind != kind:
            self.fail(f"expected a {kind}, found {token.text!r}")
        self.position += 1
        return token

    def accept(self, text: str) -> bool:
        if self.next.kind in ("mark", "arrow") and self.next.text == text:
            self.position += 1
            return True
        return False

    def expect(self, *texts: str) -> None:
        for text in texts:
            if not self.accept(text):
                self.fail(f"expected {text!r}, found {self.next.text!r}")

    def schema(self) -> Schema:
        if self.accept("<"):
            self.dtype_variable()
            while self.accept(","):
                self.dtype_variable()
            self.expect(">")
        inputs, attributes = self.parameters()
        self.expect("->", "(")
        outputs = [self.output(inputs)]
        while self.accept(","):
            outputs.append(self.output(inputs))
        self.expect(")")
        self.take("end")
        self.check_names(inputs, attributes, outputs)
        return Schema(self.dtype_vars, tuple(inputs), tuple(attributes), tuple(outputs))

    def dtype_variable(self) -> None:
        token = self.take("name")
        if token.text in DTYPES or token.text in self.dtype_vars:
            self.fail(f"{token.text!r} cannot be a dtype variable: the name is taken", token)
        if not token.text[0].isupper():
            self.fail(f"a dtype variable begins with a capital letter, not {token.text!r}", token)
        self.expect(":")
        choices = [self.concrete_dtype()]
        while self.accept("|"):
            choices.append(self.concrete_dtype())
        self.dtype_vars[token.text] = tuple(choices)

    def concrete_dtype(self) -> str:
        token = self.take("name")
        if token.text not in DTYPES:
            self.fail(f"unknown dtype {token.text!r}; there are {', '.join(DTYPES)}", token)
        return token.text

    def parameters(self) -> tuple[list[Argument], list[Attribute]]:
        inputs: list[Argument] = []
        attributes: list[Attribute] = []
        self.expect("(")
        while not self.accept(")"):
            if inputs:
                self.expect(",")
            if self.accept("*"):
                while self.accept(","):
                    attributes.append(self.attribute())
                if not attributes:
                    self.fail("expected ',' and an attribute after '*'")
                self.expect(")")
                break
            inputs.append(self.argument())
        return inputs, attributes

    def parameter_name(self) -> str:
        token = self.take("name")
        if not _NAME.fullmatch(token.text) or token.text in _RESERVED:
            self.fail(f"{token.text!r} cannot be a parameter name: use lower case, and no reserved word", token)
        self.expect(":")
        return token.text

    def argument(self) -> Argument:
        name = self.parameter_name()
        dtype = self.take("name")
        if dtype.text not in DTYPES and dtype.text not in self.dtype_vars:
            known = ", ".join([*self.dtype_vars, *DTYPES])
            self.fail(f"unknown dtype {dtype.text!r}; there are {known}", dtype)
        self.expect("[")
        dims: list[Dim] = []
        while not self.accept("]"):
            dims.append(self.dim(REST in dims))
        return Argument(name, dtype.text, tuple(dims))

    def dim(self, has_rest: bool) -> Dim:
        token = self.next
        if token.kind == "rest" and has_rest:
            self.fail("'...' may stand once in an argument")
        if token.kind == "number" and not token.text.isdigit():
            self.fail(f"a dimension is a whole number, not {token.text!r}")
        if token.kind not in ("rest", "number", "name"):
            self.fail(f"expected a dimension or ']', found {token.text!r}")
        self.position += 1
        return int(token.text) if token.kind == "number" else token.text

    def output(self, inputs: list[Argument]) -> Argument:
        start = self.next
        output = self.argument()
        known = {dim for argument in inputs for dim in argument.dims}
        for dim in output.dims:
            if isinstance(dim, str) and dim not in known:
                self.fail(f"dimension {dim!r} of output {output.name} appears in no input", start)
        if output.dtype in self.dtype_vars and all(argument.dtype != output.dtype for argument in inputs):
            self.fail(f"dtype variable {output.dtype} of output {output.name} appears in no input", start)
        return output

    def attribute(self) -> Attribute:
        name = self.parameter_name()
        kind = self.take("name")
        if kind.text not in ATTRIBUTE_TYPES:
            self.fail(f"unknown attribute type {kind.text!r}; there are {', '.join(ATTRIBUTE_TYPES)}", kind)
        if not self.accept("="):
            return Attribute(name, kind.text)
        token = self.next
        if token.kind not in ("number", "string", "name"):
            self.fail(f"expected a default value, found {token.text!r}")
        self.position += 1
        try:
            return Attribute(name, kind.text, Attribute(name, kind.text).convert(_literal(token)))
        except (TypeError, ValueError, SyntaxError) as error:
            self.fail(f"the default {token.text} is not a {kind.text}: {error}", token)

    def check_names(self, inputs: list[Argument], attributes: list[Attribute], outputs: list[Argument]) -> None:
        seen: set[str] = set()
        for name in [item.name for items in (inputs, attributes, outputs) for item in items]:
            if name in seen:
                raise SchemaError(self.text, self.text.rindex(name), f"the name {name!r} is used twice")
            seen.add(name)
        if not inputs:
            raise SchemaError(self.text, self.text.index("("), "an op needs at least one input")


def _literal(token: _Token) -> object:
    if token.kind == "name":
        return {"true": True, "false": False, "True": True, "False": False}[token.text] if token.text.lower() in (
            "true", "false") else float(token.text)  # fmt: skip
    if token.kind == "number" and token.text.lstrip("+-") in ("inf", "nan"):
        return float(token.text)
    return ast.literal_eval(token.text)
