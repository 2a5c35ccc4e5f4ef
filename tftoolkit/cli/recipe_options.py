"""What a recipe says about itself: its options, with the comments in its source as their meaning."""

import ast
import dataclasses
import inspect
import io
import itertools
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TypeVar

from ml_collections import ConfigDict

from tftoolkit.trainers import recipes

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Option:
    """``config.NAME``, which ``--config.NAME=VALUE`` sets."""

    name: str
    """With dots, where it lies deeper."""
    default: Any
    meaning: str


def summary(recipe: str) -> str:
    """A line about the recipe, with the result that it must reach."""
    about = (inspect.getdoc(recipes.module(recipe)) or "").partition("\n\n")[0].replace("\n", " ")
    config = recipes.load(recipe)
    expected = [f"{name} of at least {value:g}" for name, value in config.get("at_least", {}).items()]
    expected += [f"{name} of at most {value:g}" for name, value in config.get("at_most", {}).items()]
    return f"{about} Expected: {', '.join(expected) or 'nothing in particular'}."


def options(recipe: str) -> list[Option]:
    """All options, in the order of the recipe's file, those of the recipe that it begins with first."""
    sources = [inspect.getsource(module) for module in _modules(recipes.module(recipe))]
    notes: dict[str, str] = {}
    lines: dict[str, tuple[int, int]] = {}
    for i, source in enumerate(sources):
        notes |= comments(source)
        lines |= {name: (i, first) for name, first, _ in _assignments(ast.parse(source))}
    found = [Option(name, value, _nearest(name, notes, "")) for name, value in _leaves(recipes.load(recipe), "")]
    return sorted(found, key=lambda option: _nearest(option.name, lines, (0, 0)))


def _modules(recipe: ModuleType) -> list[ModuleType]:
    """The recipe's module behind those of the recipes that it begins with."""
    bases = [value for value in vars(recipe).values() if isinstance(value, ModuleType) and hasattr(value, "get_config")]
    return [*itertools.chain.from_iterable(map(_modules, bases)), recipe]


def comments(source: str) -> dict[str, str]:
    """By option (``a.b`` for ``config.a.b = …`` and ``config.a = ConfigDict({"b": …})``) the comment lines right above
    it and the comment behind it, where there are any."""
    above: dict[int, str] = {}
    behind: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            (above if alone else behind)[token.start[0]] = token.string.lstrip("#").strip()
    found = {}
    for name, first, last in _assignments(ast.parse(source)):
        start = first
        while start - 1 in above:
            start -= 1
        texts = [above[line] for line in range(start, first)] + ([behind[last]] if last in behind else [])
        if texts:
            found[name] = " ".join(texts)
    return found


def _assignments(tree: ast.AST) -> Iterator[tuple[str, int, int]]:
    """Each option that is set, with the first and the last line of that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name = ast.unparse(node.targets[0]).partition(".")[2]
            yield name, node.lineno, node.end_lineno or node.lineno
            yield from _entries(node.value, name)


def _entries(value: ast.expr, name: str) -> Iterator[tuple[str, int, int]]:
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    if isinstance(value, ast.Dict):
        for key, entry in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield f"{name}.{key.value}", key.lineno, entry.end_lineno or entry.lineno
                yield from _entries(entry, f"{name}.{key.value}")


def _leaves(config: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _nearest(name: str, found: dict[str, _T], otherwise: _T) -> _T:
    """What was found about the option, or about what it lies in."""
    while name and name not in found:
        name = name.rpartition(".")[0]
    return found.get(name, otherwise)
