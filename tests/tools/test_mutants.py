"""tools/mutants.py mutates code and no texts, runs the nearest tests first, and its verdicts are true."""

import importlib
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

SHAPES = '''"""Areas; 1 + 1."""
from __future__ import annotations
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    size = 1 + 1
__all__ = ["area", "half"]


def area(width: int | None, height: float) -> float:
    assert height is not None
    if width < 0:
        raise ValueError("negative, by %d" % (0 - width))
    print("area", 1 + 1)
    return cast("int", width * height) if True else 7


def half(n):
    return n // 2


def double(n):
    return n * 2


def label(n):
    return n == "one" or "n" + n
'''
AREA = """\
def area(width, height):
    return width * height
"""
TEST_SHAPES = """
import pytest
from toy import shapes

def test_area():
    assert shapes.area(2, 3) == 6

@pytest.mark.slow
def test_half():
    assert shapes.half(5) == 2
"""


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("mutants")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with a package, its tests and this project's settings for pytest; no built ops to copy, no plugins."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("TFTOOLKIT_CACHE_DIR", str(tmp_path / "no_cache"))
    root = tmp_path / "root"
    for name, text in {"toy/__init__.py": "", "toy/shapes.py": SHAPES, "tests/toy/test_shapes.py": TEST_SHAPES}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(ROOT / "tests/conftest.py", root / "tests")
    return root


def listed(
    mutants: ModuleType, root: Path, capsys: pytest.CaptureFixture[str], *arguments: str
) -> list[tuple[str, str, str]]:
    """What --list prints: place, old line and new line of each mutant."""
    assert mutants.main([*arguments, "--list"], root) == 0
    return re.findall(r"^(\S+:\d+)\n    - (.*)\n    \+ (.*)", capsys.readouterr().out, re.M)


def test_what_is_mutated(mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but texts, types, asserts, what is printed, and the 7 that Python compiles away; seeds are several."""
    found = {mutant for seed in range(40) for mutant in listed(mutants, toy, capsys, "toy", f"--seed={seed}")}
    whole = 'return cast("int", width * height) if True else 7'
    assert {(place.removeprefix("toy/shapes.py:"), new) for place, _, new in found} == {
        ("12", "if width <= 0:"), ("12", "if width < 1:"), ("12", "if not (width < 0):"), ("12", "if False:"),
        ("13", "pass"), ("14", "pass"),
        ("15", "return None"), ("15", whole.replace("True", "False")), ("15", whole.replace("True", "not (True)")),
        ("19", "return None"), ("19", "return n * 2"), ("19", "return n // 3"),
        ("23", "return None"), ("23", "return n / 2"), ("23", "return n * 3"),
        ("27", "return None"), ("27", 'return n != "one" or "n" + n'), ("27", 'return n == "one" and "n" + n'),
    }  # fmt: skip
    assert {old for place, old, _ in found if place.endswith(":15")} == {whole}


def test_a_seed_gives_the_same_mutants_one_on_a_line(
    mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, same, other = (listed(mutants, toy, capsys, "toy", f"--seed={seed}") for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(place for place, _, _ in one) == [f"toy/shapes.py:{line}" for line in (12, 13, 14, 15, 19, 23, 27)]


def test_folders_get_equal_numbers(mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(toy / "toy", toy / "twin")
    with pytest.raises(SystemExit):
        mutants.main(["nowhere"], toy)
    places = [place.split("/")[0] for place, _, _ in listed(mutants, toy, capsys, "toy", "twin", "--mutants=7")]
    assert places == ["toy"] * 4 + ["twin"] * 3


@pytest.mark.slow
def test_verdicts(mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that a fast test sees, one that a slow test sees, one that none sees; the checkout stays as it was."""
    (toy / "toy/shapes.py").write_text(SHAPES[SHAPES.index("def half") : SHAPES.index("def label")] + AREA)
    before = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    assert mutants.main(["toy", "--slow"], toy) == 0
    printed = capsys.readouterr().out
    assert re.search(r"toy/shapes.py:2 caught by tests/toy/test_shapes.py::test_half\n", printed)
    assert re.search(r"toy/shapes.py:10 caught by tests/toy/test_shapes.py::test_area\n", printed)
    assert re.search(r"^toy +3 +1 +1 +0 +1 +0 +33% +67%$", printed, re.M)
    assert re.search(r"survivors:\ntoy/shapes.py:6\n    - return n \* 2\n    \+ return .*\n$", printed)
    assert {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()} == before


def test_a_catch_needs_tests_that_pass_without_the_mutant(
    mutants: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "tests/toy/test_shapes.py").write_text("def test_nothing():\n    assert False, 'broken'\n")
    assert mutants.main(["toy", "--mutants=1"], toy) == 1
    printed = capsys.readouterr().out
    assert "tests/toy/test_shapes.py fails without the mutant, too" in printed
    assert "broken" in printed


@pytest.mark.slow
def test_silence_is_a_catch_counted_apart(mutants: ModuleType, toy: Path, tmp_path: Path) -> None:
    (toy / "toy/shapes.py").write_text("def count(n):\n    while n > 0:\n        n -= 1\n    return n\n")
    (toy / "tests/toy/test_shapes.py").write_text("from toy import shapes\n\ndef test():\n    shapes.count(2)\n")
    source = (toy / "toy/shapes.py").read_bytes()
    start = source.index(b"n -=")
    mutant = mutants.Mutant(Path("toy/shapes.py"), start, start + len(b"n -= 1"), "pass")
    verdict = mutants.Laboratory(toy, tmp_path / "laboratory", timeout=10).judge(
        mutant, mutants.mirror(toy, mutant.path), slow=False
    )
    assert verdict == mutants.Verdict("timeout", False, "tests/toy/test_shapes.py")


def test_the_nearest_tests_come_first(mutants: ModuleType, tmp_path: Path) -> None:
    tests = {
        "tests/a/test_all.py": "area half", "tests/a/b/test_other.py": "", "tests/a/b/test_using.py": "area",
        "tests/a/b/test_shapes.py": "", "tests/c/test_shapes.py": "",
    }  # fmt: skip
    for name, text in {"a/b/shapes.py": SHAPES, "a/b/__init__.py": "", "a/d/e.py": "", "f/g.py": "", **tests}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    names = [path.name for path in mutants.mirror(tmp_path, Path("a/b/shapes.py"))]
    assert names == ["test_shapes.py", "test_using.py", "test_other.py", "test_all.py"]
    assert mutants.mirror(tmp_path, Path("a/d/e.py"))[0].parts[:2] == ("tests", "a")
    with pytest.raises(SystemExit, match="tests/f has no test_"):
        mutants.mirror(tmp_path, Path("f/g.py"))
