"""What the trainers' tests share."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tftoolkit.trainers import console


@pytest.fixture(scope="session")
def example(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module ``example.py`` beside this file."""
    return load_module(Path(__file__).with_name("example.py"))


@pytest.fixture(scope="session")
def trainings_of(
    load_module: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], AbstractContextManager[Any]]:
    """Starts a server of trainings, a script: ``with trainings_of(script) as trainings``; see ``trainings.py``."""
    started = load_module(Path(__file__).with_name("trainings.py")).started
    return lambda script: started(script, tmp_path_factory.mktemp(script.stem))


@pytest.fixture
def terminal(load_module: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a terminal and puts it in the place of stdout and stderr; see ``terminal.py``."""
    module = load_module(Path(__file__).with_name("terminal.py"))

    def make(columns: int = 80) -> Any:
        made = module.Terminal(columns)
        monkeypatch.setattr(sys, "stdout", made.stream)
        monkeypatch.setattr(sys, "stderr", made.stream)
        monkeypatch.setattr(console, "_TERMINAL_INTERVAL", 0.0)
        return made

    return make
