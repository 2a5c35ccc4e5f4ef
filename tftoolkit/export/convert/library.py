"""The custom ops as an export sees them: finding them by type, and packing their libraries beside a SavedModel."""

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from absl import logging

from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.engine.errors import BuildError
from tftoolkit.custom_ops.engine.library import declaring_folders, load_builtin, open_library
from tftoolkit.export.report import ExportError

_LOADER = '''\
"""Registers the custom ops of this SavedModel and loads it. Needs tensorflow and tftoolkit, not the model's code.

    import runpy
    model = runpy.run_path("<saved model>/assets.extra/load.py")["load"]()

Ops that the installed tftoolkit brings are its own; the others come from the library files beside this one.
"""

import pathlib

import tensorflow as tf
from tftoolkit.custom_ops import open_library
from tftoolkit.export.convert.library import find

HERE = pathlib.Path(__file__).resolve().parent
LIBRARIES = {libraries}  # file -> op types


def register():
    for file, op_types in LIBRARIES.items():
        missing = [op_type for op_type in op_types if find(op_type) is None]
        if missing:
            open_library(missing[0].rpartition(">")[0], HERE / file).register()


def load():
    register()
    return tf.saved_model.load(str(HERE.parent))
'''


def find(op_type: str) -> ops.Op | None:
    """The custom op of this type, or None. A built-in op is loaded when a file mentions it."""
    if op_type.startswith("TfToolkit>") and ops.find(op_type) is None:
        for folder in declaring_folders(op_type.partition(">")[2]):
            load_builtin(folder).register()
            importlib.import_module(f"tftoolkit.custom_ops.{folder}")  # references and gradients
    return ops.find(op_type)


def register(paths: Mapping[str, Path]) -> None:
    """Makes ops known that another process uses: op type -> its library."""
    for op_type, path in paths.items():
        if find(op_type) is None:
            open_library(op_type.rpartition(">")[0], path).register()


def check_names(custom: Mapping[str, ops.Op]) -> None:
    """Raises ExportError for an op that bears a number, since its source was changed in this process.

    In any other process its library registers it without.
    """
    numbered = sorted(op_type for op_type, op in custom.items() if op_type != f"{op.library.name}>{op.name}")
    if numbered:
        raise ExportError(
            "structure",
            f"{', '.join(numbered)}: the source of this op was changed after it had been loaded, and only this process "
            f"knows it under that name; restart Python and export again",
        )


def pack(folder: Path, custom: Mapping[str, ops.Op]) -> None:
    """Copies the op libraries into ``assets.extra`` of the SavedModel, with loaders (TensorFlow itself loads none)."""
    from tftoolkit.export.convert import registration  # needs TensorFlow

    check_names(custom)
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    files: dict[str, list[str]] = {}
    for op_type, op in sorted(custom.items()):
        source = op.library.path
        files.setdefault(source.name, []).append(op_type)
        shutil.copyfile(source, extra / source.name)
    (extra / "load.py").write_text(_LOADER.replace("{libraries}", json.dumps(files, indent=4)))
    try:
        registration.pack(extra, custom)
    except BuildError as error:  # no compiler here, and the libraries came from elsewhere; Python needs load.py alone
        logging.warning("%s: programs other than Python cannot load its custom ops: %s", folder, error)
