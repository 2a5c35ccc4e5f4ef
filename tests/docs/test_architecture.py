"""docs/architecture.md shows the house as it is: its picture, the names in its pictures, its paths, every folder."""

import ast
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from tftoolkit.custom_ops.engine.library import builtin_folders

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
_FACTS = re.compile(r"<metadata>(.*)</metadata>", re.DOTALL)  # what it shows, in words
_PATH = re.compile(r"(?:[\w.]+/)+[\w.]*")
_BOX = re.compile(r'<text class="head"[^>]*>(\w+)</text>\s*<text class="mono"[^>]*>([^<]+)</text>')
_MONO = re.compile(r'class="mono"[^>]*>([^<]+)<')
_HEAD = re.compile(r'<tspan class="head">(\w+)<')


def _found(path: str) -> Path:
    """Where a path of the page or of a picture leads: from the top, or from the import package."""
    return next((folder / path for folder in (ROOT, ROOT / "tftoolkit") if (folder / path).exists()), ROOT / path)


def _defined(path: Path) -> set[str]:
    """The classes and functions of a file, or of the files of a folder."""
    files = [path] if path.is_file() else path.glob("*.py")
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for file in files for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


def test_the_picture_is_that_of_the_imports(tmp_path):
    now = tmp_path / "architecture.svg"
    subprocess.run([sys.executable, ROOT / "tools/architecture/run.py", now], check=True)
    shown, true = (_FACTS.findall(file.read_text())[0] for file in (ROOT / "docs/architecture.svg", now))
    assert len(true) > 1000
    if shown != true:
        pytest.fail("docs/architecture.svg is older than the imports: run `make docs` and commit it")


@pytest.mark.parametrize("name", ["batch", "model"])
def test_what_the_ways_name_exists(name):
    picture = unescape((ROOT / f"docs/{name}.svg").read_text())
    boxes = _BOX.findall(picture)
    assert len(boxes) >= 4
    assert [(word, path) for word, path in boxes if word not in _defined(_found(path))] == []
    paths = _MONO.findall(picture)
    assert [path for path in paths if not _found(path).exists()] == []
    assert set(_HEAD.findall(picture)) <= _defined(ROOT / "tftoolkit/export")


def test_paths_on_the_page_exist():
    code = re.findall(r"`([^`]+)`", PAGE)
    paths = {word for text in code for word in text.split() if _PATH.fullmatch(word) and "NAME" not in word}
    assert len(paths) > 30
    assert [path for path in sorted(paths) if not _found(path).exists()] == []


def test_the_page_names_every_folder():
    packages = {path for path in (ROOT / "tftoolkit").iterdir() if path.is_dir()}
    parts = {path for package in packages for path in package.iterdir() if path.is_dir()}
    parts -= {ROOT / "tftoolkit/custom_ops" / op for op in builtin_folders()}  # `custom_ops/NAME/` there
    folders = {str(path.relative_to(ROOT / "tftoolkit")) + "/" for path in packages | parts if path.name[0] not in "_."}
    assert len(folders) > 30
    assert [folder for folder in sorted(folders) if f"`{folder}`" not in PAGE] == []
