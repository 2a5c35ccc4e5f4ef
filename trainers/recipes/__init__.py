"""Recipes: configurations that are known to work, each with the result it must reach written inside.

A recipe is a module here with ``get_config()``; ``tftoolkit train NAME`` runs it. The help shows its docstring's first
paragraph, and for each option the comment lines right above it.
"""

import difflib
import importlib
import pkgutil
from types import ModuleType

from ml_collections import ConfigDict

from tftoolkit.errors import CodedError


class UnknownRecipeError(CodedError, ValueError):
    """No recipe has this name; the message lists the nearest."""

    error_code = "recipe-unknown"


def names() -> list[str]:
    """The recipes there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ConfigDict:
    """The recipe's configuration, with its types locked. Raises UnknownRecipeError."""
    config = module(name).get_config()
    return config.lock()


def module(name: str) -> ModuleType:
    """The recipe's module. Raises UnknownRecipeError."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownRecipeError(f"unknown recipe {name!r}: {hint}There are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
