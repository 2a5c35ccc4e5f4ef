"""What is wrong with a recipe's settings, said before anything is read or written."""

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from ml_collections import ConfigDict


def one_of(setting: str, value: Any, there_are: Collection[str]) -> None:
    """Raises ValueError with the nearest names where ``value`` is none of them."""
    if value not in there_are:
        near = difflib.get_close_matches(str(value), there_are, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"config.{setting}={value!r}: {hint}There are: {', '.join(sorted(there_are))}")


def between(config: ConfigDict, setting: str, least: float, most: float | None = None, why: str = "") -> None:
    """Raises ValueError where a setting (with dots, where it lies deeper) is out of range; ``why``: what limits it."""
    value: Any = config
    for name in setting.split("."):
        value = value[name]
    if not (least <= value and (most is None or value <= most)):  # NaN is in no range
        limits = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"config.{setting}={value!r} must be {limits}{f': {why}' if why else ''}")


def arguments_of(setting: str, function: Callable[..., Any], given: Collection[str]) -> None:
    """Raises ValueError where a setting in ``given`` is none of the function's arguments; they are named."""
    there_are = inspect.signature(function).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in there_are.values()):
        return
    for name in given:
        if name not in there_are:
            taken = ", ".join(sorted(there_are))
            raise ValueError(f"config.{setting}.{name}: {function.__name__} has no such argument; it has: {taken}")
