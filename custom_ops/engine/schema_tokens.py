"""Tokens of the schema language, and the error that points at one; schema_parser.py knows the grammar."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from tftoolkit.errors import CodedError


class SchemaError(CodedError, ValueError):
    """A schema that cannot be read; the message shows the text with a mark under the column."""

    error_code = "op-schema"

    def __init__(self, text: str, column: int, reason: str) -> None:
        self.text, self.column, self.reason = text, column, reason
        super().__init__(f"column {column + 1}: {reason}\n  {text}\n  {' ' * column}^")


_TOKEN = re.compile(
    r"""\s*(?:(?P<arrow>->)|(?P<rest>\.\.\.)|(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
        |(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
        |(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>[<>():,\[\]|=*?+\-/]))""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    column: int


class Tokens:
    """Of a text, taken one by one; what does not fit is an error at its column."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokenize())
        self.position = 0

    def _tokenize(self) -> Iterable[Token]:
        position = 0
        end = len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                column = position + len(self.text[position:]) - len(self.text[position:].lstrip())
                raise SchemaError(self.text, column, f"unexpected character {self.text[column]!r}")
            kind = str(match.lastgroup)
            yield Token(kind, match[kind], match.start(kind))
            position = match.end()
        yield Token("end", "the end", end)

    @property
    def next(self) -> Token:
        return self.tokens[self.position]

    def fail(self, reason: str, token: Token | None = None) -> NoReturn:
        raise SchemaError(self.text, (token or self.next).column, reason)

    def take(self, kind: str) -> Token:
        token = self.next
        if token.kind != kind:
            self.fail(f"expected a {kind}, found {token.text!r}")
        self.position += 1
        return token

    def sees(self, *texts: str) -> bool:
        return self.next.kind in ("mark", "arrow") and self.next.text in texts

    def accept(self, text: str) -> bool:
        found = self.sees(text)
        self.position += found
        return found

    def expect(self, *texts: str) -> None:
        for text in texts:
            if not self.accept(text):
                self.fail(f"expected {text!r}, found {self.next.text!r}")

    def list_literal(self) -> list[object]:
        values: list[object] = []
        while not self.accept("]"):
            if values:
                self.expect(",")
            values.append(self.literal())
        return values

    def literal(self) -> object:
        sign = -1 if self.accept("-") else 1
        signed = sign == -1 or self.accept("+")
        token = self.next
        if token.kind not in ("number", "string", "name") or (signed and token.kind == "string"):
            self.fail(f"expected a value, found {token.text!r}")
        self.position += 1
        if token.kind == "name":
            constants: dict[str, object] = {"true": True, "True": True, "false": False, "False": False}
            if not signed and token.text in constants:
                return constants[token.text]
            if token.text not in ("inf", "nan"):
                self.fail(f"{token.text!r} is no value", token)
            return sign * float(token.text)
        try:
            value = ast.literal_eval(token.text)
        except (ValueError, SyntaxError) as error:
            self.fail(f"{token.text} is no value: {error}", token)
        return value if token.kind == "string" else sign * value
