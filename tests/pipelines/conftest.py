"""What the pipelines' tests share."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"pipelines_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def random_pipelines() -> ModuleType:
    """The module ``random_pipelines.py`` beside this file."""
    return _load("random_pipelines")


@pytest.fixture(scope="session")
def source_files(random_pipelines: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files for a source of every kind."""
    folder = tmp_path_factory.mktemp("sources")
    random_pipelines.write_files(folder)
    return folder
