"""Which symbols of TensorFlow Addons a program uses, and where. Programs are read, not run."""

import ast
import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tftoolkit.errors import CodedError
from tftoolkit.migration.answers import Answer, answers

_PACKAGE = "tensorflow_addons"
_PARTS = frozenset({symbol.partition(".")[0] for symbol in answers() if "." in symbol} | {"text.crf"})
_MAGIC = re.compile(r"^(\s*)[%!?].*$", re.MULTILINE)
_Scope = dict[str, str | None]  # name -> what it is behind "tfa." ("" for the package); None: something else


class ProgramError(CodedError, ValueError):
    """A file that is no program of Python 3, or no notebook with one."""

    error_code = "program-unreadable"


@dataclasses.dataclass(frozen=True)
class Use:
    """One place of a program.

    Attributes:
        place: ``FILE:LINE``, or ``FILE[CELL]:LINE`` of a notebook.
        symbol: as it is written behind ``tfa.``; that of ``answers()`` if it has one.
        answer: None if there is no such symbol.
        near: symbols with similar names, if there is no such one.
    """

    place: str
    symbol: str
    answer: Answer | None
    near: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.answer is not None:
            return f"{self.place}: tfa.{self.symbol} -> {self.answer}"
        if self.symbol in _PARTS or not self.symbol:
            whole = f"tfa.{self.symbol}".rstrip(".")
            return f"{self.place}: {whole} -> unknown: handed on as a whole, what is taken from it isn't seen"
        hint = f"; did you mean {' or '.join(f'tfa.{name}' for name in self.near)}?" if self.near else ""
        return f"{self.place}: tfa.{self.symbol} -> unknown: TensorFlow Addons 0.23 has no such symbol{hint}"


def uses(path: str | Path) -> list[Use]:
    """What a program or notebook (``.ipynb``) uses, in the order of its lines.

    Names are followed through imports, assignments of names, ``getattr`` and ``importlib.import_module`` with strings;
    not through attributes, containers and calls.

    Raises:
        OSError: the file can't be read.
        ProgramError: it isn't a program of Python 3.
    """
    path = Path(path)
    text, place = _notebook(path) if path.suffix == ".ipynb" else (path.read_bytes(), lambda line: f"{path}:{line}")
    try:
        reader = _Reader(ast.parse(text))
    except SyntaxError as error:
        where = place(error.lineno) if error.lineno else str(path)
        raise ProgramError(f"{where}: not Python 3: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"{path}: not Python 3: {error}") from None
    return [_use(place(line), name) for line, name in sorted(reader.found)]


def _use(place: str, name: str) -> Use:
    words = name.split(".")
    for count in range(len(words), 0, -1):  # tfa.text.crf.crf_decode is tfa.text.crf_decode, SWA.method is SWA
        for symbol in (".".join(words[:count]), f"{words[0]}.{words[count - 1]}"):
            if symbol in answers():
                return Use(place, symbol, answers()[symbol])
    leaves = {symbol.rpartition(".")[2]: symbol for symbol in answers()}
    near = difflib.get_close_matches(words[-1], leaves, n=2, cutoff=0.8)
    return Use(place, name, None, tuple(leaves[leaf] for leaf in near))


def _notebook(path: Path) -> tuple[str, Callable[[int], str]]:
    """The code cells as one program, and what a line of it is called."""
    try:
        cells = json.loads(path.read_bytes())["cells"]
        code = [
            (number, "".join(cell["source"])) for number, cell in enumerate(cells, 1) if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ProgramError(f"{path}: not a notebook: {error!r}") from None
    lines: list[tuple[int, int]] = []
    texts = []
    for number, source in code:
        first, _, rest = source.partition("\n")
        if first.startswith("%%"):  # another language, or a measurement of this one
            source = f"pass\n{rest}" if re.match(r"%%(time|timeit|capture|prun)\b", first) else "pass"
        source = _MAGIC.sub(r"\1pass", source)
        texts.append(source)
        lines += [(number, line) for line in range(1, source.count("\n") + 2)]

    def place(line: int) -> str:
        cell, own = lines[min(line, len(lines)) - 1] if lines else (0, line)
        return f"{path}[{cell}]:{own}"

    return "\n".join(texts), place


class _Reader(ast.NodeVisitor):
    """Attributes: ``found``, pairs of a line and what stands there behind ``tfa.``."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: list[tuple[int, str]] = []
        self._scopes: list[_Scope] = [{}]
        self._starred: list[str] = []
        # Bodies of functions, read when what is around them has been: they may use what is imported below them.
        self._later: list[tuple[Sequence[ast.stmt], list[_Scope]]] = [(tree.body, self._scopes)]
        while self._later:
            body, self._scopes = self._later.pop(0)
            for statement in body:
                self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if _is_ours(alias.name):
                name = alias.asname or _PACKAGE
                self._scopes[-1][name] = _behind(alias.name) if alias.asname else ""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level or not _is_ours(node.module or ""):
            return
        module = _behind(node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self._starred.append(module)
                continue
            whole = f"{module}.{alias.name}".lstrip(".")
            self._scopes[-1][alias.asname or alias.name] = whole
            self._record(node.lineno, whole, parts=False)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._expression(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._expression(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._expression(node)

    def _expression(self, node: ast.expr) -> None:
        name = self._behind_tfa(node)
        if name is None:
            self.generic_visit(node)
        else:
            self._record(node.lineno, name, parts=id(node) not in self._bound)

    _bound: frozenset[int] = frozenset()  # values that a name was made for: the parts among them are followed

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in (*node.decorator_list, node.args, *([node.returns] if node.returns else [])):
            self.visit(outside)
        self._later.append((node.body, [*self._scopes, dict.fromkeys(_locals(node))]))

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._scopes = [*self._scopes, dict.fromkeys(_parameters(node.args))]
        self.visit(node.body)
        self._scopes = self._scopes[:-1]

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._bind(one, other)
        elif isinstance(target, ast.Name) and (name := self._behind_tfa(value)) is not None:
            # A name that was once this stays it: `except ImportError: tfa = None` doesn't take it back.
            self._scopes[-1][target.id] = name
            self._bound |= {id(value)}

    def _record(self, line: int, name: str, parts: bool) -> None:
        if parts or (name and name not in _PARTS):
            self.found.append((line, name))

    def _behind_tfa(self, node: ast.expr) -> str | None:
        """What an expression is behind ``tfa.``; None if it is something else."""
        if isinstance(node, ast.Name):
            return self._looked_up(node.id)
        if isinstance(node, ast.Attribute):
            base = self._behind_tfa(node.value)
            return None if base is None else f"{base}.{node.attr}".lstrip(".")
        if isinstance(node, ast.Call) and (strings := [text for a in node.args if (text := _text(a))]):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and _is_ours(strings[0]):
                return _behind(strings[0]) if called == "import_module" else ""
            if called == "getattr" and (base := self._behind_tfa(node.args[0])) is not None:
                return f"{base}.{strings[0]}".lstrip(".")
        return None

    def _looked_up(self, name: str) -> str | None:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        for module in self._starred:
            whole = f"{module}.{name}".lstrip(".")
            if whole in answers() or whole in _PARTS:
                return whole
        return None


def _is_ours(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")


def _behind(module: str) -> str:
    return module[len(_PACKAGE) + 1 :]


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    yield from (node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg))


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names that are a function's own: what it assigns hides what is outside."""
    names, outside = set(_parameters(function.args)), set()
    nodes: list[ast.AST] = list(function.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Global | ast.Nonlocal):
            outside |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return names - outside
