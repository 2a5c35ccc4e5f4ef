"""Finds compilers, CUDA and headers, without importing TensorFlow or JAX."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tftoolkit.custom_ops.errors import BuildError

SUPPORTED_TENSORFLOW = ">=2.21,<2.22"
INCLUDE_DIR = Path(__file__).resolve().parent / "include"


@dataclass(frozen=True)
class Compiler:
    """A compiler: its path and the first line it prints about itself."""

    path: str
    version: str


@functools.cache
def cxx() -> Compiler:
    """The C++ compiler: ``$CXX``, else g++, c++ or clang++. Raises BuildError when there is none."""
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "c++", "clang++"]:
        if path := shutil.which(name):
            return Compiler(path, _first_line([path, "--version"]))
    looked = f"$CXX={wanted}" if wanted else "g++, c++ and clang++"
    raise BuildError(
        f"no C++ compiler found (looked for {looked}). Install one, on Debian: apt install g++; or set CXX to its path."
    )


@functools.cache
def nvcc() -> Compiler | None:
    """CUDA's compiler: under ``$CUDA_HOME``, else on PATH, else in /usr/local/cuda. None when there is none."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [shutil.which("nvcc", path=f"{root}/bin") for root in roots if root]
    candidates += [shutil.which("nvcc"), shutil.which("nvcc", path="/usr/local/cuda/bin")]
    for path in filter(None, candidates):
        release = re.search(r"release .*", _output([path, "--version"]))
        if release:
            return Compiler(path, release.group())
    return None


@functools.cache
def cuda_root() -> Path:
    """The CUDA toolkit's folder. nvcc on PATH may be a wrapper script, so nvcc itself is asked."""
    compiler = nvcc()
    if compiler is None:
        raise BuildError("no CUDA toolkit found. Install one (nvcc 12.8 or newer), or set CUDA_HOME to its folder.")
    found = re.search(r"^#\$ TOP=(.*)$", _output([compiler.path, "--dryrun", "-x", "cu", "/dev/null"]), re.MULTILINE)
    return (
        Path(found.group(1).strip() if found else compiler.path).resolve() if found else Path(compiler.path).parents[1]
    )


def tensorflow_dir() -> Path | None:
    """The installed TensorFlow's folder, or None."""
    return _package_dir("tensorflow")


def tensorflow_version() -> str | None:
    """The installed TensorFlow's version, or None."""
    for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_tensorflow() -> str:
    """The installed TensorFlow's version, if the op host supports it. Raises BuildError otherwise."""
    version = tensorflow_version()
    if version is None:
        raise BuildError(f"TensorFlow is not installed. Install it: pip install 'tensorflow{SUPPORTED_TENSORFLOW}'")
    if version.split(".")[:2] != ["2", "21"]:
        raise BuildError(
            f"TensorFlow {version} is installed, but this tftoolkit works with {SUPPORTED_TENSORFLOW} only, since the "
            f"op host is tied to TensorFlow's C++ ABI. Mend it: pip install 'tensorflow{SUPPORTED_TENSORFLOW}'"
        )
    return version


def ffi_include_dir() -> Path:
    """The folder with ``xla/ffi/api/ffi.h``: TensorFlow's, else JAX's. Raises BuildError when neither is there."""
    for package in ("tensorflow", "jaxlib"):
        folder = _package_dir(package)
        if folder and (folder / "include/xla/ffi/api/ffi.h").exists():
            return folder / "include"
    raise BuildError("xla/ffi/api/ffi.h was not found: install TensorFlow 2.20 or newer, or JAX.")


def _package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _first_line(command: list[str]) -> str:
    return _output(command).partition("\n")[0].strip()
