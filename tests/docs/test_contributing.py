"""CONTRIBUTING.md is followed word for word in a copy of the repository, and ends with an op in order."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LINES_OF_A_SCREEN = 50
# make with the Python of this test, where all that it wants is installed.
HERE = f"make --old-file=.venv/.dev BIN={Path(sys.executable).parent} "


def blocks(section: str, language: str) -> list[tuple[str, str]]:
    """(path that the first line names, the lines behind it) of a section's blocks."""
    found = re.findall(rf"^```{language}\n(?://|#) (\S+\.\w+)\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
    assert found
    return found


def inserted(text: str, line: str) -> str:
    """``line`` among its like in alphabetical order."""
    lines = text.splitlines()
    like = line[: line.index(".custom_ops.") + 12] if "import" in line else '    "'
    places = [place for place, one in enumerate(lines) if one.startswith(like)]
    behind = next(place for place in places if lines[place].lower() > line and lines[place][len(like)].islower())
    return "\n".join([*lines[:behind], line, *lines[behind:], ""])


@pytest.fixture
def copy(tmp_path):
    leave_out = shutil.ignore_patterns(".[!.c]*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, tmp_path / "copy", symlinks=True, ignore=leave_out))


def run(folder: Path, command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_op_word_for_word(copy):
    for path, code in [*blocks("An op", "cpp"), *blocks("An op", "python")]:
        (copy / path).parent.mkdir(exist_ok=True)
        (copy / path).write_text(code)
    names = re.findall(r'`(from tftoolkit\.[^`]+|"\w+",)`', SECTIONS["An op"])
    assert len(names) == 2
    file = copy / "custom_ops/__init__.py"
    for line in names:
        file.write_text(inserted(file.read_text(), f"    {line}"))
    (commands,) = re.findall(r"^```sh\n(.*?)^```", SECTIONS["An op"], re.DOTALL | re.MULTILINE)
    said = {command: run(copy, command.replace("make ", HERE)) for command in commands.splitlines()}
    assert "no check failed" in said["tftoolkit ops check squareplus"]
    assert "custom_ops.squareplus(x" in (copy / "tests/tftoolkit/public_names.txt").read_text()
    assert "tftoolkit/custom_ops/squareplus/squareplus.cc" in (copy / "tools/release/wheel_files.txt").read_text()
    run(copy, "python -m pytest tests/docs/test_architecture.py tests/tftoolkit/test_public_names.py")
    if shutil.which("clang-format"):
        run(copy, "clang-format --dry-run --Werror custom_ops/squareplus/*.cc")
    run(copy, "ruff check custom_ops && ruff format --check custom_ops && mypy -p tftoolkit.custom_ops.squareplus")


@pytest.mark.slow
def test_stage_source_step_and_recipe(copy):
    for section in ("A stage", "A source", "A step", "A recipe"):
        ((path, code),) = blocks(section, "python")
        (copy / path).write_text(code)
    program = """
from tftoolkit.pipelines import Pipeline
from tftoolkit.pipelines.sources.squares_source import squares
from tftoolkit.pipelines.stages import striding
p = Pipeline(squares(10), seed=0)
p = p._with(striding.strided(p._plan, 3))
assert [batch["square"].numpy().tolist() for batch in p.batch(3).dataset(epochs=1)] == [[0, 9, 36], [81]]
whole = list(p.shuffle().batch(2).dataset(epochs=5))
(later,) = p.shuffle().batch(2).dataset(start=7, epochs=4)
assert (later["number"].numpy() == whole[7]["number"].numpy()).all()
from tftoolkit.trainers.examples import autoencoder
explained = autoencoder.main()
assert explained > 2 / 3, explained
from tftoolkit.trainers import recipes
assert "tabular_deep" in recipes.names()
"""
    run(copy, f"python - <<'END'\n{program}\nEND")
    assert "hidden layers" in run(copy, "tftoolkit train tabular_deep --help")


def test_paths_and_links_lead_somewhere():
    prose = re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE)
    named = [*re.findall(r"`([\w.]+(?:/[\w.]+)*/(?:[\w]+\.\w+)?)`", prose), *re.findall(r"\]\(([^)#:]+)\)", prose)]
    assert len(named) > 30
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_a_screen_each():
    for name, text in SECTIONS.items():
        assert len(text.strip().splitlines()) <= LINES_OF_A_SCREEN, name


def test_the_python_blocks_are_python():
    for section in SECTIONS:
        for _, code in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE):
            ast.parse("\n".join(line.strip() for line in code.splitlines()) if code.startswith("    ") else code)
