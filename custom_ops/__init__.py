"""Compiled ops: write a kernel once as an XLA FFI handler, run it in TensorFlow eagerly, in graphs and inside XLA."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.errors import BuildError, LoadError
from tftoolkit.custom_ops.library import OpLibrary, builtin_folders, load
from tftoolkit.custom_ops.schema import SchemaError

if TYPE_CHECKING:
    from tftoolkit.custom_ops.rms_norm import rms_norm

__all__ = ["BuildError", "LoadError", "OpLibrary", "SchemaError", "load", "rms_norm"]

# Built-in ops import TensorFlow and may have to be compiled, so each is loaded when it is first asked for.
_OPS = frozenset(builtin_folders())


def __getattr__(name: str) -> Any:
    if name in _OPS:
        importlib.import_module(f"tftoolkit.custom_ops.{name}")
        return globals()[name]
    raise AttributeError(f"module 'tftoolkit.custom_ops' has no attribute {name!r}; it has {', '.join(__all__)}")


class _Package(ModuleType):
    """An op's function bears its folder's name. Importing the folder would put the module there instead."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, getattr(value, name) if name in _OPS else value)


sys.modules[__name__].__class__ = _Package
