"""Prints, as JSON, what Bazel must know to build as the package's own builder does; run by tensorflow.bzl.

Exits with one line on stderr when this interpreter cannot be used.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

try:
    from tftoolkit.custom_ops import BuildError
    from tftoolkit.custom_ops.engine import builder, compiling, toolchain
except ImportError as error:
    sys.exit(f"{error}. Install what tftoolkit needs: {sys.executable} -m pip install -e .")


def flags(unit: compiling.Unit) -> list[str]:
    """The flags that are the same on every machine: Bazel finds sources and headers its own way."""
    return [flag for flag in unit.command[1:] if not flag.startswith(("-I", "-isystem"))]


def description() -> dict[str, object]:
    """Everything @tensorflow//:description.bzl holds."""
    host = builder.host_recipe().units[0]
    library = builder.library_recipe("any", ["any.cc"]).units[0]
    folder = toolchain.tensorflow_dir()
    assert folder is not None  # host_recipe() has checked
    includes = [Path(flag.removeprefix("-isystem")) for flag in host.command if flag.startswith("-isystem")]
    return {
        "python": sys.executable,
        "folder": str(folder),
        "includes": [str(path.relative_to(folder)) for path in includes],
        "host_copts": flags(host),
        "library_copts": flags(library),
    }


if __name__ == "__main__":
    try:
        print(json.dumps(description()))
    except BuildError as error:
        sys.exit(str(error))
