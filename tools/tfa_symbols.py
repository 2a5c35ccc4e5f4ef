"""Writes tftoolkit/migration/symbols.txt: the public symbols of TensorFlow Addons, from its wheel.

    pip download --no-deps tensorflow-addons==0.23.0
    python tools/tfa_symbols.py tensorflow_addons-0.23.0-*.whl

Public is what ``import tensorflow_addons as tfa`` brings along: what the ``__init__`` of a part imports, what the
modules ``options`` and ``types`` define, and the functions at the top. A line is the symbol, with its parameters if it
has some. Nothing is imported, so that neither that wheel's TensorFlow nor its compiled ops are needed.
"""

import ast
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

FILE = Path(__file__).parents[1] / "tftoolkit/migration/symbols.txt"
_TOP = "tensorflow_addons"


class Wheel:
    def __init__(self, path: str) -> None:
        self._zip = zipfile.ZipFile(path)
        self._names = set(self._zip.namelist())

    def module(self, name: str) -> ast.Module:
        path = name.replace(".", "/")
        inside = f"{path}.py" if f"{path}.py" in self._names else f"{path}/__init__.py"
        return ast.parse(self._zip.read(inside))

    def symbols(self) -> Iterator[str]:
        for node in self.module(_TOP).body:
            if not isinstance(node, ast.ImportFrom) or node.module is None or ".utils." in node.module:
                continue
            for alias in node.names:
                if node.module == _TOP or alias.name == "types":  # a part
                    yield from self._part(alias.name, f"{node.module}.{alias.name}")
                else:
                    yield self._described("", alias.name, self.module(node.module))

    def _part(self, part: str, module: str) -> Iterator[str]:
        tree = self.module(module)
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{_TOP}.{part}"):
                for alias in node.names:
                    if node.module == module:
                        yield f"{part}.{alias.name}"  # a module in it
                    else:
                        yield self._described(f"{part}.", alias.name, self.module(node.module))
            elif isinstance(node, ast.FunctionDef | ast.Assign) and part in ("options", "types"):
                name = node.name if isinstance(node, ast.FunctionDef) else ast.unparse(node.targets[0])
                if not name.startswith("_"):
                    yield self._described(f"{part}.", name, tree)
        if part == "types":
            yield "types.Optimizer"  # defined in the branches of an if

    @staticmethod
    def _described(prefix: str, name: str, tree: ast.Module) -> str:
        found = next((node for node in tree.body if getattr(node, "name", None) == name), None)
        if isinstance(found, ast.ClassDef):
            found = next((node for node in found.body if getattr(node, "name", None) == "__init__"), None)
        if not isinstance(found, ast.FunctionDef):
            return prefix + name
        for argument in ast.walk(found.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        found.args.args = [argument for argument in found.args.args if argument.arg != "self"]
        return f"{prefix}{name}({ast.unparse(found.args)})"


if __name__ == "__main__":
    symbols = sorted(set(Wheel(sys.argv[1]).symbols()))
    FILE.write_text("".join(f"{symbol}\n" for symbol in symbols))
    print(f"{len(symbols)} symbols")
