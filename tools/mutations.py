"""One-line mutants of Python code: which there are, and a random sample of them.

Not mutated: texts (strings, what is raised, logged or printed), annotations, asserts and ``strict=`` (only a second
mistake could show them), ``__all__``, TYPE_CHECKING and ``__main__`` blocks, and what compiles to the same code.

Why no library: of cosmic-ray 8.7 and mutmut 3.8 only the tables of operators could be used. Neither removes a statement
or disarms a guard, and neither samples by a seed. Many of their mutants raise at once, wherever they are run (``*`` to
``>>``, ``int | None`` to ``int & None``; an argument dropped or made None), which flatters the tests, and mutmut
changes texts. They would bring 13 direct dependencies (SQLAlchemy, aiohttp, GitPython) or 6 (libcst, textual).
"""

import ast
import dataclasses
import random
import re
from pathlib import Path
from types import CodeType

OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"), ast.Pow: ("**", "*"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip
_PAIRS = (
    "min max", "any all", "minimum maximum", "reduce_min reduce_max", "reduce_any reduce_all", "argmin argmax",
    "reduce_sum reduce_mean", "floor ceil", "zeros ones", "zeros_like ones_like", "lower upper", "startswith endswith",
    "cumsum cumprod",
)  # fmt: skip
NAMES = {old: new for pair in _PAIRS for old, new in (pair.split(), pair.split()[::-1])}
SPEECH = {"debug", "info", "warning", "warn", "error", "print"}  # calls whose arguments are for people
TYPES = {"TypeVar", "ParamSpec", "NewType", "cast"}  # calls that are for type checkers


@dataclasses.dataclass(frozen=True, order=True)
class Mutant:
    """One change of one line: ``new`` instead of the bytes ``start`` to ``end`` of the file ``path`` below the root."""

    path: Path
    start: int
    end: int
    new: str

    def apply(self, source: bytes) -> bytes:
        """The mutated file."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def line(self, source: bytes) -> int:
        """Its line, counted from 1."""
        return source.count(b"\n", 0, self.start) + 1

    def diff(self, source: bytes) -> str:
        """Place, old line, new line."""
        number = self.line(source)
        old, new = (text.decode().splitlines()[number - 1].strip() for text in (source, self.apply(source)))
        return f"{self.path}:{number}\n    - {old}\n    + {new}"


class _Sites(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, path: Path, source: bytes) -> None:
        self.path, self.source = path, source
        self.mutants: set[Mutant] = set()
        self._lines = [0]
        for line in source.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def visit(self, node: ast.AST) -> None:
        """Adds the mutants of a node and of what lies below it, less texts and types."""
        if _left_alone(node):
            return
        if isinstance(node, ast.stmt):
            self._statement(node)
        elif isinstance(node, ast.expr):
            self._expression(node)
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                self._negate(test)
        elif isinstance(node, ast.keyword):
            start, end = self._span(node)
            comma = re.compile(rb",? ?").match(self.source, end)
            self._add(start, comma.end() if comma else end, "")
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _name(node.func) in SPEECH):
            return
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)

    def _statement(self, node: ast.stmt) -> None:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if (
            isinstance(node, ast.Raise | ast.AugAssign | ast.Delete | ast.Break | ast.Continue)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
            or (targets and all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets))
        ):
            self._add(*self._span(node), "pass")
        if isinstance(node, ast.Return) and node.value:
            self._add(*self._span(node.value), "None")
        if isinstance(node, ast.If | ast.While):
            self._negate(node.test)
        if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise | ast.Return | ast.Continue | ast.Break):
            self._add(*self._span(node.test), "False")
        if isinstance(node, ast.AugAssign):
            self._operator(node.op, node.target, node.value)

    def _expression(self, node: ast.expr) -> None:
        start, end = self._span(node)
        if isinstance(node, ast.IfExp):
            self._negate(node.test)
        elif isinstance(node, ast.Compare):
            for op, left, right in zip(node.ops, [node.left, *node.comparators], node.comparators, strict=False):
                self._operator(op, left, right)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                self._operator(node.op, left, right)
        elif isinstance(node, ast.BinOp):
            self._operator(node.op, node.left, node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            self._add(start, start + (3 if isinstance(node.op, ast.Not) else 1), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            self._add(start, end, repr(not node.value if isinstance(node.value, bool) else node.value + 1))
        elif isinstance(node, ast.Call) and _name(node.func) in NAMES:
            stop, name = self._span(node.func)[1], _name(node.func)
            self._add(stop - len(name), stop, NAMES[name])

    def _operator(self, op: ast.AST, left: ast.expr, right: ast.expr) -> None:
        old, new = OPERATORS.get(type(op), ("", ""))
        start, end = self._span(left)[1], self._span(right)[0]
        found = self.source.find(old.encode(), start, end)
        joins = isinstance(op, ast.operator) and (_is_sequence(left) or _is_sequence(right))
        if old and found >= 0 and not joins:  # what joins texts or lists would only raise
            self._add(found, found + len(old), new)

    def _negate(self, test: ast.expr) -> None:
        start, end = self._span(test)
        self._add(start, end, f"not ({self.source[start:end].decode()})")

    def _span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.lineno - 1] + node.col_offset, self._lines[node.end_lineno - 1] + node.end_col_offset

    def _add(self, start: int, end: int, new: str) -> None:
        if b"\n" not in self.source[start:end]:
            self.mutants.add(Mutant(self.path, start, end, new))


def _left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        test = node.test
        return _name(test) == "TYPE_CHECKING" or (isinstance(test, ast.Compare) and _name(test.left) == "__name__")
    if isinstance(node, ast.Assign):
        return any(_name(target) == "__all__" for target in node.targets)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in TYPES  # tf.cast is another
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return isinstance(node, ast.JoinedStr | ast.Assert)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_sequence(node: ast.expr) -> bool:
    text = isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    return text or isinstance(node, ast.JoinedStr | ast.List | ast.ListComp | ast.Tuple)


def compiled(source: bytes) -> CodeType | None:
    """What Python runs, without positions; None where it is no Python."""

    def bare(code: CodeType) -> CodeType:
        constants = tuple(bare(c) if isinstance(c, CodeType) else c for c in code.co_consts)
        return code.replace(co_linetable=b"", co_consts=constants)

    try:
        return bare(compile(source, "mutant", "exec", dont_inherit=True))
    except SyntaxError:
        return None


def mutants(root: Path, path: Path) -> list[Mutant]:
    """All mutants of a file, in order; some may compile to the same code or to none."""
    source = (root / path).read_bytes()
    sites = _Sites(path, source)
    sites.visit(ast.parse(source))
    return sorted(sites.mutants)


def sample(root: Path, folder: Path, count: int, seed: int) -> list[Mutant]:
    """``count`` mutants of the Python files below a folder, none on the same line as another and none equivalent."""
    files = [folder] if (root / folder).is_file() else [p.relative_to(root) for p in (root / folder).rglob("*.py")]
    everything = [mutant for file in sorted(files) for mutant in mutants(root, file)]
    random.Random(f"{seed} {folder.as_posix()}").shuffle(everything)
    chosen: dict[tuple[Path, int], Mutant] = {}
    for mutant in everything:
        if len(chosen) == count:
            break
        source = (root / mutant.path).read_bytes()
        place = (mutant.path, mutant.line(source))
        if place not in chosen and compiled(mutant.apply(source)) not in (None, compiled(source)):
            chosen[place] = mutant
    return list(chosen.values())
