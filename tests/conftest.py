"""Settings for every test: quiet TensorFlow, and which tests run: the fast ones, ``--slow`` or ``--all``."""

import importlib.util
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
SEED = "TFTOOLKIT_SEED"  # of what is drawn at random; xdist's workers inherit it
os.environ.setdefault(SEED, str(random.randrange(10**6)))


def pytest_addoption(parser: pytest.Parser) -> None:
    choice = parser.getgroup("which tests").addoption
    choice("--slow", action="store_true", help="run only those marked slow, which are left out otherwise")
    choice("--all", action="store_true", help="run all, also full crosses, of which the others hold a selection")


# Files that take minutes come first, so that in the end no worker is left alone with one.
_LONG = (
    *("tftoolkit/jobs/test_recipes", "engine/test_fuzz", "emulation/test_builtin", "pipelines/test_machines"),
    *("tftoolkit/jobs/", "emulation/", "plan/test_exactness", "trainers/examples/", "trainers/distribution/"),
    *("trainers/runners/test_asynchronous", "docs/", "trainers/loop/test_kill", "tools/", "engine/test_load"),
)


def _place(item: pytest.Item) -> int:
    return next((place for place, name in enumerate(_LONG) if name in str(item.path)), len(_LONG))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_place)
    if config.getoption("--all"):
        return

    def wanted(item: pytest.Item) -> bool:
        is_slow = item.get_closest_marker("slow") is not None
        return not item.get_closest_marker("exhaustive") and is_slow == config.getoption("--slow")

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


class _Failures:
    """Shows each failure when it happens: slow tests run for half an hour, and pytest shows all of them in the end."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self.reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            text = f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext[-1000:]}"
            self.reporter.write_line(text, red=True)


def _start_fast() -> None:
    """Processes that start from here on run startup/sitecustomize.py, which says what it is good for."""
    folder = str(Path(__file__).with_name("startup"))
    if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--all"):
        _start_fast()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):  # xdist's workers report to the main process
        config.pluginmanager.register(_Failures(reporter))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"seed: {SEED}={os.environ[SEED]} repeats what was drawn at random")


@pytest.fixture(scope="session")
def random_seed() -> int:
    """Another one in each run; printed at its end."""
    return int(os.environ[SEED])


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """Imports a file that several tests share; pytest's import mode makes no packages of their folders."""

    def load(path: Path) -> ModuleType:
        name = f"{path.parent.name}_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    return load
