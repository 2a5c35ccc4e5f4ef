"""What the trainers' tests share."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def example(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module ``example.py`` beside this file."""
    return load_module(Path(__file__).with_name("example.py"))
