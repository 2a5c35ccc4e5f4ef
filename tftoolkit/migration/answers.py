"""The answers: ``answers.toml``, beside the list of symbols, ``symbols.txt`` (which tools/tfa_symbols.py writes)."""

import ast
import dataclasses
import functools
import tomllib
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).parent
KINDS = {"ours": "ours", "builtin": "builtin", "recipe": "recipe", "none": "not offered"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """What stands in for a symbol.

    Attributes:
        kind: a key of ``KINDS``.
        text: a call ("ours", "builtin"), ``MODULE.NAME`` of a recipe, or a reason ("none").
        differs: what else changes; may be empty.
    """

    kind: str
    text: str
    differs: str = ""

    def __str__(self) -> str:
        return {"recipe": f"recipe {self.text}", "none": f"not offered: {self.text}"}.get(self.kind, self.text)


@functools.cache
def answers() -> MappingProxyType[str, Answer]:
    """Symbol, as it is written behind ``tfa.`` -> answer."""
    found = {}
    for part, entries in tomllib.loads((HERE / "answers.toml").read_text()).items():
        for name, entry in entries.items():
            ((kind, text),) = ((key, value) for key, value in entry.items() if key in KINDS)
            found[name if part == "top" else f"{part}.{name}"] = Answer(kind, text, entry.get("differs", ""))
    return MappingProxyType(found)


@functools.cache
def symbols() -> MappingProxyType[str, str]:
    """Symbol -> its parameters there, as they are written; empty for what isn't called."""
    found = {}
    for line in (HERE / "symbols.txt").read_text().splitlines():
        name, _, parameters = line.partition("(")
        found[name] = parameters.removesuffix(")")
    return MappingProxyType(found)


def recipe_source(name: str) -> str:
    """A recipe, ``MODULE.NAME``, behind the other definitions of its module that it uses.

    Raises:
        KeyError: there is no such recipe.
    """
    module, _, wanted = name.partition(".")
    text = (HERE / "recipes" / f"{module}.py").read_text()
    defined = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    used, left = set(), [wanted]
    while left:
        one = left.pop()
        used.add(one)
        names = {node.id for node in ast.walk(defined[one]) if isinstance(node, ast.Name)}
        left += names & defined.keys() - used
    sources = [ast.get_source_segment(text, node) or "" for key, node in defined.items() if key in used]
    return "\n\n\n".join(sources)


def recipe_imports(module: str) -> str:
    """The imports at the top of a module of recipes."""
    tree = ast.parse((HERE / "recipes" / f"{module}.py").read_text())
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
