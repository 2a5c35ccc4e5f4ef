"""What the pipelines' tests share."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def random_pipelines(load_module: Callable[[Path], ModuleType]) -> ModuleType:
    """The module ``random_pipelines.py`` beside this file."""
    return load_module(Path(__file__).with_name("random_pipelines.py"))


@pytest.fixture(scope="session")
def source_files(random_pipelines: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files for a source of every kind."""
    folder = tmp_path_factory.mktemp("sources")
    random_pipelines.write_files(folder)
    return folder
