"""What the tests of pages share: the code of a page, and running it as a reader would."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def prose() -> Callable[[Path], str]:
    """A page without its code, which has brackets of its own."""
    return lambda page: re.sub(r"`[^`]*`", "", _BLOCK.sub("", page.read_text()))


@pytest.fixture(scope="session")
def blocks() -> Callable[..., list[str]]:
    """The blocks of code on the page with this name, in their order: all, or those of one language."""

    def find(name: str, language: str | None = None) -> list[str]:
        found = _BLOCK.findall((DOCS / f"{name}.md").read_text())
        return [code for tag, code in found if language in (None, tag)]

    return find


@pytest.fixture(scope="session")
def run() -> Callable[[str, Path], str]:
    """Runs a program in a folder and gives what it prints."""

    def run(program: str, folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run
