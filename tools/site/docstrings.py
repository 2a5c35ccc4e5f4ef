"""What the site shows of docstrings: reST roles as code, formulas as MathML, and of an op also what its module says."""

import re
from typing import Any

import griffe
from latex2mathml import converter

_ROLE = re.compile(r":(?:meth|class|func|mod|attr|data):`([^`]+)`")
_FORMULA = re.compile(r"^\.\. math::(.*\n(?:   .*\n)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Loaded by mkdocs.yml."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """When all is read: documents overriding methods as what they override, and rewrites every docstring."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for member in list(parent.members.values()):
            if member.is_alias:
                continue
            if member.docstring is None and isinstance(parent, griffe.Class) and not member.name.startswith("_"):
                member.docstring = _described(parent, member) or _overridden(parent, member)
            if member.is_function and isinstance(parent, griffe.Module) and member.name == parent.name:
                _add(member, parent.docstring)
            if isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)
        if parent.docstring:
            parent.docstring.value = rewritten(parent.docstring.value)
        for member in parent.members.values():
            if isinstance(member, griffe.Function):
                _without_any(member)
            if not member.is_alias and not isinstance(member, griffe.Module | griffe.Class) and member.docstring:
                member.docstring.value = rewritten(member.docstring.value)


def _described(parent: griffe.Class, member: griffe.Object) -> griffe.Docstring | None:
    """What the class says of an attribute, among its own or its arguments: ``name: …``."""
    if not member.is_attribute or parent.docstring is None:
        return None
    found = re.search(rf"^ *`*{member.name}`*: (.*(?:\n\n?        .*)*)", parent.docstring.value, re.MULTILINE)
    return found and griffe.Docstring(" ".join(found[1].split()), parent=member)


def _overridden(parent: griffe.Class, member: griffe.Object) -> griffe.Docstring | None:
    try:
        bases = parent.mro()
    except ValueError:
        return None
    for base in bases:
        if (found := base.members.get(member.name)) and not found.is_alias and found.docstring:
            return griffe.Docstring(f"As in `{base.name}`: {found.docstring.value.splitlines()[0]}", parent=member)
    return None


def _add(function: griffe.Object, said: griffe.Docstring | None) -> None:
    if function.docstring and said:
        function.docstring.value += f"\n\n{said.value}"


def _without_any(function: griffe.Function) -> None:
    """ "Any" says nothing; the docstring does."""
    for parameter in function.parameters:
        if str(parameter.annotation) == "Any":
            parameter.annotation = None
    if str(function.returns) == "Any":
        function.returns = None


def rewritten(text: str) -> str:
    """Markdown of a docstring."""
    text = _FORMULA.sub(_mathml, text + "\n")
    text = re.sub(r"::(?=\n\n +\S)", ":", text)
    return _ROLE.sub(lambda role: f"`{role[1].lstrip('~')}`", text)


def _mathml(formula: re.Match[str]) -> str:
    return f"\n{converter.convert(' '.join(formula[1].split()), display='block')}\n"
