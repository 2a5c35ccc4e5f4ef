"""What TensorFlow Addons computes (``there``) and what its answer does (``here``): one pair of functions per case.

``tftoolkit/migration/golden_tfa.py`` calls ``there`` with TensorFlow Addons itself; the test calls ``here``.
A case's name is the symbol's, and what distinguishes several of one symbol behind a blank.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Case(NamedTuple):
    there: Callable[[Any], Any]
    here: Callable[[], Any]
    tolerance: float


CASES: dict[str, Case] = {}


def case(name: str, there: Callable[[Any], Any], here: Callable[[], Any], tolerance: float = 1e-5) -> None:
    assert name not in CASES, name
    CASES[name] = Case(there, here, tolerance)


def recipe(part: str) -> Any:
    """The module of recipes; imported late, since TensorFlow Addons is run without this package's needs."""
    return importlib.import_module(f"tftoolkit.migration.recipes.{part}")


def keras() -> Any:
    """Keras 3; imported late, since TensorFlow Addons is run with tf_keras."""
    return importlib.import_module("keras")


def ops() -> Any:
    """This package's ops; imported late, likewise."""
    return importlib.import_module("tftoolkit.custom_ops")


def load() -> dict[str, Case]:
    """All cases."""
    for name in ("functions", "pictures", "sequences"):
        importlib.import_module(f"tfa_cases.{name}")
    return CASES
