"""What a public function raises by name stands in its docstring, or in its class's.

Read from the sources, without running them. What it calls counts too, if that lies in its folder and is called by its
name, as a module's function or as a method of ``self``: further away a caller's own checks may make it impossible.
"""

import ast
import builtins
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "tests/tftoolkit/public_names.txt").read_text().splitlines()
PUBLIC = [re.split(r"[(:]", line)[0] for line in LINES if not line.endswith(": module")]
CONSTRUCTORS = ("__init__", "__new__", "__post_init__")
CALLED = (*CONSTRUCTORS, "__call__")  # what a class's public name stands for
NOT_SAID = {"NotImplementedError"}  # that a subclass has it
# Raised further down for arguments that never come from there.
IMPOSSIBLE = {
    "custom_ops.OpLibrary.register": {"KeyError"},  # its own names
    "custom_ops.available": {"TypeError"},  # our own sources
    "models.resnet18": {"ValueError"},  # their depths are four
    "models.resnet34": {"ValueError"},
    "models.resnet50": {"ValueError"},
    "trainers.Update.check_weights": {"TypeError"},  # the constructor has refused them
}


class Found(NamedTuple):
    """A function or class, the module that defines it, and the class that it is a method of."""

    module: str
    node: ast.FunctionDef | ast.ClassDef
    of: ast.ClassDef | None = None

    def methods(self, *names: str) -> list["Found"]:
        own = [one for one in self.node.body if isinstance(one, ast.FunctionDef) and one.name in names]
        return [Found(self.module, one, self.node) for one in own]


@functools.cache
def file_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@functools.cache
def names_in(module: str) -> dict[str, Found | tuple[str, str]]:
    """Name → what the module defines, or where it imports it from and its name there; also under TYPE_CHECKING."""
    found: dict[str, Found | tuple[str, str]] = {}
    statements = list(ast.parse(file_of(module).read_text()).body)
    for one in statements:
        if isinstance(one, ast.If):
            statements += one.body
        elif isinstance(one, ast.FunctionDef | ast.ClassDef):
            found[one.name] = Found(module, one)
        elif isinstance(one, ast.ImportFrom) and one.module.startswith("tftoolkit"):
            for alias in one.names:
                found |= names_in(one.module) if alias.name == "*" else {}
                found[alias.asname or alias.name] = one.module, alias.name
    return found


def found_as(module: str, name: str) -> Found | str | None:
    """What a module calls ``name``: a function or class, or the name of a module; None for anything else."""
    what = names_in(module).get(name, (module, name)) if file_of(module).exists() else (module, name)
    if isinstance(what, Found):
        return what
    inner = found_as(*what) if what != (module, name) else None
    return inner or (".".join(what) if file_of(".".join(what)).exists() else None)


def kinds(error: str) -> set[str]:
    """The names that catch it; of ours, which are not loaded here, its own and the widest one."""
    classes = getattr(builtins, error).__mro__ if hasattr(builtins, error) else [Exception]
    return {error, *(one.__name__ for one in classes)}


def leaving(node: ast.AST, of_call: Callable[[ast.expr], set[str]]) -> set[str]:
    """The exceptions that ``node`` raises and does not catch; ``of_call`` gives those of a function that it calls."""
    names: set[str] = set()
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Try | ast.With):
        tried = set().union(*(leaving(one, of_call) for one in node.body))
        types = [one for part in catching(node) for one in ast.walk(part)]
        caught = {one.id for one in types if isinstance(one, ast.Name)}
        names = {name for name in tried if caught.isdisjoint(kinds(name))}
        children = [*node.items] if isinstance(node, ast.With) else [*node.handlers, *node.orelse, *node.finalbody]
    elif isinstance(node, ast.Raise) and node.exc is not None:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
        names = {name} if name[:1].isupper() else set()  # else a variable, or a function that makes one
    elif isinstance(node, ast.Call):
        names = of_call(node.func)
    return names.union(*(leaving(one, of_call) for one in children))


def catching(node: ast.Try | ast.With) -> list[ast.expr]:
    """What names the exceptions that end here: in ``except``, or in ``contextlib.suppress``."""
    if isinstance(node, ast.Try):
        return [handler.type for handler in node.handlers if handler.type]
    calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
    return [one for call in calls if ast.unparse(call.func) == "contextlib.suppress" for one in call.args]


def called(one: Found, function: ast.expr) -> list[Found]:
    """What ``one`` calls by this expression and what lies in its folder."""
    found: list[Found | str | None] = []
    if isinstance(function, ast.Name):
        found = [found_as(one.module, function.id)]
    elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        if function.value.id in ("self", "cls") and one.of:
            found = [*Found(one.module, one.of).methods(function.attr)]
        elif isinstance(home := found_as(one.module, function.value.id), str):
            found = [found_as(home, function.attr)]
    folder = file_of(one.module).parent
    return [other for other in found if isinstance(other, Found) and file_of(other.module).parent == folder]


def raised_by(one: Found, known: dict[Found, set[str]]) -> set[str]:
    if one not in known:
        known[one] = set()  # for functions that call each other
        if isinstance(one.node, ast.ClassDef):
            parts = [raised_by(method, known) for method in one.methods(*CONSTRUCTORS)]
        else:

            def of_call(function: ast.expr) -> set[str]:
                return set().union(*(raised_by(other, known) for other in called(one, function)))

            parts = [leaving(statement, of_call) for statement in one.node.body]
        known[one] = set().union(*parts)
    return known[one]


def behind(public_name: str) -> Iterator[Found]:
    """The functions that a public name stands for; none if it is an attribute or a class without methods of these."""
    package, *rest = public_name.split(".")
    found: Found | str | None = f"tftoolkit.{package}"
    while rest and isinstance(found, str):
        found = found_as(found, rest.pop(0))
    assert isinstance(found, Found), f"{public_name}: not found in the sources"
    if isinstance(found.node, ast.ClassDef):
        yield from found.methods(*(rest or CALLED))
    else:
        yield found


@pytest.fixture(scope="module")
def known() -> dict[Found, set[str]]:
    return {}


def test_docstrings_name_the_errors(known: dict[Found, set[str]]) -> None:
    lines = []
    for name in PUBLIC:
        functions = list(behind(name))
        classes = {one.of for one in functions if one.of}
        docstring = "\n".join(ast.get_docstring(node) or "" for node in [*classes, *(one.node for one in functions)])
        for one in functions:
            errors = raised_by(one, known) - NOT_SAID - IMPOSSIBLE.get(name, set())
            left = sorted(error for error in errors if not re.search(rf"\b{error}\b", docstring))
            if left:
                where = f"{file_of(one.module).relative_to(ROOT)}:{one.node.lineno}"
                lines.append(f"{where}: {name} raises {', '.join(left)}; its docstring must say when")
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("custom_ops.adamw_rows", {"ValueError"}),  # by itself
        ("trainers.Best.exhausted", {"ValueError"}),  # by a method
        ("models.resnet18", {"ValueError"}),  # by a constructor
        ("pipelines.sources.tokens", {"ValueError", "FileNotFoundError", "SourceError"}),  # by functions of other files
        ("export.load_delegate", {"ExportError"}),  # one is caught and another raised
        ("pipelines.image.mixup", {"TypeError", "ValueError"}),  # later, by a function that it makes
    ],
)
def test_errors_are_found(name: str, errors: set[str], known: dict[Found, set[str]]) -> None:
    (one,) = behind(name)
    assert raised_by(one, known) == errors
