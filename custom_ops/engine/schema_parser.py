"""Reads the schema language: a method for each rule of the grammar.

Grammar (spaces are free)::

    schema     = [ "<" dtype_var { "," dtype_var } ">" ] "(" parameters ")" "->" "(" output { "," output } ")" { word }
    word       = "batchable" | "stateful"
    dtype_var  = NAME ":" dtype { "|" dtype }
    parameters = input { "," input } [ "," "*" "," attribute { "," attribute } ]
    input      = [ "*" ] name [ "?" ] ":" ( dtype | NAME ) "[" { "..." | integer | name [ ( "+" | "-" ) integer ] } "]"
    output     = [ "*" ] name [ "?" ] ":" ( dtype | NAME ) "[" { "..." | sum } "]" [ "=" name ]
    sum        = product { ( "+" | "-" ) product }
    product    = factor { ( "*" | "/" ) factor }
    factor     = integer | name | "(" sum ")"
    attribute  = name ":" ( "f32" | "f64" | "i32" | "i64" | "bool" | "str" ) [ "[" "]" ] [ "=" literal ]
               | name ":" NAME [ "=" dtype ]

Dimensions that share a name must agree. ``...`` stands for any number of dimensions, at most once per argument, and is
the same list wherever it appears. An output's dimensions may be computed from names and from integer attributes.
``*name`` is a list of tensors (lists come last), ``name?`` may be None (an output is, unless ``has_name=True`` asks for
it), ``y: T[n] = x`` is x in place::

    <T: f32 | bf16 | f16>(x: T[... d], gamma: T[d], *, epsilon: f32 = 1e-6) -> (y: T[... d], inv_rms: f32[...])
"""

from __future__ import annotations

import keyword
import re

from tftoolkit.custom_ops.engine.schema import (
    DTYPES,
    PROPERTIES,
    REST,
    SCALAR_TYPES,
    Argument,
    Attribute,
    Dim,
    Expression,
    Schema,
    named,
    presence,
)
from tftoolkit.custom_ops.engine.schema_tokens import Token, Tokens


def parse(text: str) -> Schema:
    """Reads a schema. Raises SchemaError, which names the column."""
    return _Parser(text).schema()


_NAME = re.compile(r"[a-z][a-z0-9_]*")  # as TensorFlow wants it


def _is_shifted_name(dim: Expression) -> bool:
    """n+1 or n-1."""
    kinds = [type(item) for item in dim.postfix]
    return kinds == [str, int, str] and dim.postfix[2] in ("+", "-")


class _Parser(Tokens):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.dtype_vars: dict[str, tuple[str, ...]] = {}
        self.inputs: list[Argument] = []
        self.attributes: list[Attribute] = []
        self.outputs: list[Argument] = []
        self.taken: set[str] = set()

    # The parts of a schema

    def schema(self) -> Schema:
        if self.accept("<"):
            self.dtype_variable()
            while self.accept(","):
                self.dtype_variable()
            self.expect(">")
        self.parameters()
        self.expect("->", "(")
        self.output()
        while self.accept(","):
            self.output()
        self.expect(")")
        if all(output.optional for output in self.outputs):
            self.fail("an op needs at least one output that is not optional")
        words: set[str] = set()
        while self.next.kind != "end":
            words.add(self.property(words))
        self.take("end")
        return Schema(
            self.dtype_vars, tuple(self.inputs), tuple(self.attributes), tuple(self.outputs),
            batchable="batchable" in words, stateful="stateful" in words,
        )  # fmt: skip

    def property(self, before: set[str]) -> str:
        """A word after the outputs."""
        token = self.next
        if token.text not in PROPERTIES or token.kind != "name":
            self.fail(f"expected the end or one of {', '.join(PROPERTIES)}, found {token.text!r}")
        if token.text in before:
            self.fail(f"{token.text!r} is said twice")
        if token.text == "batchable":
            self.check_batchable()
        self.position += 1
        return token.text

    def check_batchable(self) -> None:
        """One more dimension fits in front of every ``...``, and every output has one."""
        for argument in (*self.inputs, *self.outputs):
            if argument.variadic:
                self.fail(f"an op with lists, such as {argument.name}, cannot be batchable")
            if REST in argument.dims[1:]:
                self.fail(f"in a batchable op '...' comes first, but in {argument.name} it does not")
        for output in self.outputs:
            if output.optional:
                self.fail(f"an op with optional outputs, such as {output.name}, cannot be batchable")
            if REST not in output.dims:
                self.fail(f"every output of a batchable op begins with '...', but {output.name} does not")

    def dtype_variable(self) -> None:
        token = self.take("name")
        if token.text in DTYPES or token.text in self.dtype_vars or token.text == "N":  # N: the length of lists
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

    def parameters(self) -> None:
        start = self.next
        self.expect("(")
        while not self.accept(")"):
            if self.inputs:
                self.expect(",")
            if self.sees("*") and self.tokens[self.position + 1].text in (",", ")"):
                self.position += 1
                while self.accept(","):
                    self.attribute()
                if not self.attributes:
                    self.fail("expected ',' and an attribute after '*'")
                self.expect(")")
                break
            self.input()
        if not self.inputs:
            self.fail("an op needs at least one input", start)
        if all(argument.optional for argument in self.inputs):
            self.fail("an op needs at least one input that is not optional", start)

    def parameter_name(self) -> str:
        token = self.take("name")
        if not _NAME.fullmatch(token.text) or keyword.iskeyword(token.text) or token.text == "name":
            self.fail(f"{token.text!r} cannot be a parameter name: use lower case, and no reserved word", token)
        if token.text in self.taken:
            self.fail(f"the name {token.text!r} is used twice", token)
        self.taken.add(token.text)
        return token.text

    def dtype(self) -> str:
        token = self.take("name")
        if token.text not in DTYPES and token.text not in self.dtype_vars:
            self.fail(f"unknown dtype {token.text!r}; there are {', '.join([*self.dtype_vars, *DTYPES])}", token)
        return token.text

    def input(self) -> None:
        start = self.next
        variadic = self.accept("*")
        name = self.parameter_name()
        optional = self.accept("?")
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        dims: list[Dim] = []
        while not self.accept("]"):
            token = self.next
            dims.append(self.dim(dims))
            if isinstance(dims[-1], Expression) and not _is_shifted_name(dims[-1]):
                self.fail("of expressions only a name plus or minus a number, as n+1, stands in inputs", token)
        argument = Argument(name, dtype, tuple(dims), variadic, optional)
        if variadic and optional:
            self.fail("a list cannot be optional", start)
        if self.inputs and self.inputs[-1].variadic and not variadic:
            self.fail("lists come after all other inputs", start)
        if optional:
            self.take_presence(argument, start)
        self.inputs.append(argument)

    def take_presence(self, argument: Argument, start: Token) -> None:
        name = presence(argument)
        if name in self.taken:
            self.fail(f"the name {name!r} is used twice: it tells the kernel whether {argument.name} is there", start)
        self.taken.add(name)

    def output(self) -> None:
        start = self.next
        variadic = self.accept("*")
        name = self.parameter_name()
        optional = self.accept("?")
        self.expect(":")
        dtype = self.dtype()
        self.expect("[")
        dims: list[Dim] = []
        while not self.accept("]"):
            dims.append(self.dim(dims))
        alias = self.alias() if self.accept("=") else None
        output = Argument(name, dtype, tuple(dims), variadic, optional, alias)
        self.check_output(output, start)
        if optional:
            self.take_presence(output, start)
            self.attributes.append(Attribute(presence(output), "bool", False))
        self.outputs.append(output)

    def alias(self) -> str:
        token = self.take("name")
        if token.text not in {argument.name for argument in self.inputs}:
            self.fail(f"{token.text!r} is no input", token)
        if token.text in {output.alias for output in self.outputs}:
            self.fail(f"{token.text!r} already has an output in its place", token)
        return token.text

    def check_output(self, output: Argument, start: Token) -> None:
        """Everything in it is known from inputs that are always there."""
        sources = [argument for argument in self.inputs if not argument.optional]
        reachable = [argument for argument in sources if output.variadic or not argument.variadic]
        if output.optional and (output.variadic or output.alias):
            self.fail("neither a list nor an output in place of an input can be optional", start)
        if output.variadic and not any(argument.variadic for argument in sources):
            self.fail("a list as output needs a list as input, whose length it has", start)
        if self.outputs and self.outputs[-1].variadic and not output.variadic:
            self.fail("lists come after all other outputs", start)
        integers = {attribute.name for attribute in self.attributes if attribute.type in ("i32", "i64")}
        known = {dim for argument in reachable for dim in argument.dims if dim == REST} | integers
        known |= {one[0] for argument in reachable for dim in argument.dims if (one := named(dim))}
        for dim in output.dims:
            for name in dim.names if isinstance(dim, Expression) else [dim]:
                if isinstance(name, str) and name not in known:
                    self.fail(f"dimension {name!r} of output {output.name} appears in no input", start)
        chosen = {attribute.type for attribute in self.attributes} | {argument.dtype for argument in sources}
        if output.dtype in self.dtype_vars and output.dtype not in chosen:
            self.fail(
                f"dtype variable {output.dtype} of output {output.name} appears in no input, nor is it an attribute",
                start,
            )
        if output.alias:
            (source,) = (argument for argument in self.inputs if argument.name == output.alias)
            same = ("dtype", "dims", "variadic")
            if source.optional or any(getattr(source, part) != getattr(output, part) for part in same):
                self.fail(f"{output.name} takes the place of {source}, so it must be declared just like it", start)

    # Dimensions

    def dim(self, before: list[Dim]) -> Dim:
        if self.next.kind == "rest":
            if REST in before:
                self.fail("'...' may stand once in an argument")
            self.position += 1
            return REST
        postfix = self.sum()
        return postfix[0] if len(postfix) == 1 else Expression(tuple(postfix))

    def sum(self) -> list[int | str]:
        postfix = self.product()
        while self.sees("+", "-"):
            mark = self.take("mark").text
            postfix += [*self.product(), mark]
        return postfix

    def product(self) -> list[int | str]:
        postfix = self.factor()
        while self.sees("*", "/"):
            mark = self.take("mark").text
            postfix += [*self.factor(), mark]
        return postfix

    def factor(self) -> list[int | str]:
        token = self.next
        if self.accept("("):
            postfix = self.sum()
            self.expect(")")
            return postfix
        if token.kind == "number" and not token.text.isdigit():
            self.fail(f"a dimension is a whole number, not {token.text!r}")
        if token.kind not in ("number", "name"):
            self.fail(f"expected a dimension or ']', found {token.text!r}")
        if token.text == "_":
            self.fail("'_' is no wildcard: give each dimension a name of its own; two of one name must agree")
        self.position += 1
        if token.kind == "name":
            return [token.text]
        if int(token.text) >= 1 << 63:
            self.fail("a dimension must fit into 63 bits", token)
        return [int(token.text)]

    # Attributes

    def attribute(self) -> None:
        name = self.parameter_name()
        self.expect(":")
        kind = self.take("name")
        if kind.text in self.dtype_vars:
            self.dtype_attribute(name, kind)
            return
        if kind.text not in SCALAR_TYPES:
            self.fail(
                f"unknown attribute type {kind.text!r}; there are {', '.join(SCALAR_TYPES)} and lists of them", kind
            )
        type_name = kind.text
        if self.accept("["):
            self.expect("]")
            type_name += "[]"
        attribute = Attribute(name, type_name)
        if self.accept("="):
            start = self.next
            value = self.list_literal() if self.accept("[") else self.literal()
            try:
                attribute = Attribute(name, type_name, attribute.convert(value))
            except (TypeError, ValueError) as error:
                self.fail(f"not a default for {name}: {error}", start)
        self.attributes.append(attribute)

    def dtype_attribute(self, name: str, kind: Token) -> None:
        """``dtype: Out = f32``: callers choose what Out stands for."""
        taken = {argument.dtype for argument in self.inputs} | {attribute.type for attribute in self.attributes}
        if kind.text in taken:
            self.fail(f"what {kind.text} stands for is known already: take a dtype variable that no input has", kind)
        choices = self.dtype_vars[kind.text]
        default = None
        if self.accept("="):
            start = self.next
            default = DTYPES[self.concrete_dtype()]
            if default not in [DTYPES[choice] for choice in choices]:
                self.fail(f"{start.text} is none of {' | '.join(choices)}", start)
        self.attributes.append(Attribute(name, kind.text, default, choices))
