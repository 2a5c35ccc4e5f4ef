"""The public names, and what their functions take, are those that stand in public_names.txt: nothing gets lost unseen.

``python tests/tftoolkit/test_public_names.py > tests/tftoolkit/public_names.txt`` after a change that is meant.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

GOLDEN = Path(__file__).with_name("public_names.txt")
PACKAGES = ("custom_ops", "pipelines", "trainers", "export", "models")


def public_names() -> Iterator[str]:
    """A line each: the names in the packages' ``__all__``, those of modules among them, and classes' members."""
    for package in PACKAGES:
        module = importlib.import_module(f"tftoolkit.{package}")
        for name in sorted(module.__all__):
            yield from described(f"{package}.{name}", getattr(module, name))


def described(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, ModuleType):
        yield f"{name}: module"
        own = (key for key, one in vars(value).items() if getattr(one, "__module__", None) == value.__name__)
        for key in sorted(getattr(value, "__all__", own)):
            if not key.startswith("_"):
                yield from described(f"{name}.{key}", getattr(value, key))
    elif inspect.isclass(value):
        yield f"{name}{signature(value)}: class"
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_"):
                yield f"{name}.{key}{signature(member) if callable(member) else ''}"
    else:
        yield f"{name}{signature(value) if callable(value) else ''}"


def signature(function: Any) -> str:
    """Parameters and defaults, without annotations, addresses and paths."""
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return "(…)"
    parameters = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    text = str(found.replace(parameters=parameters, return_annotation=found.empty))
    return re.sub(r" at 0x[0-9a-f]+| from '[^']+'", "", text)


def test_public_names_are_the_golden_ones() -> None:
    golden, now = GOLDEN.read_text().splitlines(), list(public_names())
    lost, new = sorted(set(golden) - set(now)), sorted(set(now) - set(golden))
    assert (lost, new) == ([], []), "names were lost or changed, or are new; if that is meant, write the file anew"


if __name__ == "__main__":
    print("\n".join(public_names()))
