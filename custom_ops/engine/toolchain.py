"""Finds compilers, CUDA and headers, without importing TensorFlow or JAX."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tftoolkit.custom_ops.engine.errors import BuildError

# What pyproject.toml asks for, and the minor releases of TensorFlow 2 that the op host can be built for.
RECOMMENDED_TENSORFLOW = ">=2.21,<2.22"
_TENSORFLOW_MINORS = range(18, 22)
INCLUDE_DIR = Path(__file__).resolve().parent / "include"


@dataclass(frozen=True)
class Compiler:
    """A compiler: the words that run it, such as ``ccache /usr/bin/g++``, and the first line it prints about itself."""

    command: tuple[str, ...]
    version: str


@functools.cache
def cxx() -> Compiler:
    """The C++ compiler: ``$CXX``, else g++, c++ or clang++. Raises BuildError when there is none.

    ``$CXX`` may hold flags and a launcher, as for make: "ccache g++ -pthread".
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "c++", "clang++"]:
        first, *others = [name] if shutil.which(name) else shlex.split(name) or [name]
        if path := shutil.which(first):
            return Compiler((path, *others), _first_line([path, *others, "--version"]))
    looked = f"$CXX={wanted}" if wanted else "g++, c++ and clang++"
    raise BuildError(
        f"no C++ compiler found (looked for {looked}). Install one, on Debian: apt install g++; or set CXX to its "
        "path.",
        code="op-tools",
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
            return Compiler((path,), release.group())
    return None


@functools.cache
def cuda_root() -> Path:
    """The CUDA toolkit's folder. nvcc on PATH may be a wrapper script, so nvcc itself is asked."""
    compiler = nvcc()
    if compiler is None:
        raise BuildError(
            "no CUDA toolkit found. Install one (nvcc 12.8 or newer), or set CUDA_HOME to its folder.", code="op-tools"
        )
    said = _output([*compiler.command, "--dryrun", "-x", "cu", "/dev/null"])
    found = re.search(r"^#\$ TOP=(.*)$", said, re.MULTILINE)
    return Path(found.group(1).strip()).resolve() if found else Path(compiler.command[0]).parents[1]


@functools.cache
def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, one that CUDA_VISIBLE_DEVICES hides included."""
    # WSL has no such file, but a driver.
    return any(Path("/dev").glob("nvidia[0-9]*")) or (ask_driver(hidden=True) or (0, 0))[1] > 0


@functools.cache
def ask_driver(*, hidden: bool = False) -> tuple[int, int] | None:
    """The NVIDIA driver's CUDA status, 0 when all is well, and its number of GPUs; None when there is no driver.

    Args:
      hidden: count those too that CUDA_VISIBLE_DEVICES hides.
    """
    environment = {name: value for name, value in os.environ.items() if not (hidden and name == "CUDA_VISIBLE_DEVICES")}
    # In a process of its own, since CUDA does not survive a later fork.
    command = [sys.executable, "-I", "-S", "-c", _COUNT_GPUS]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if asked.returncode:
        return None
    status, count = map(int, asked.stdout.split())
    return status, count


_COUNT_GPUS = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)), count.value)
"""


def tensorflow_dir() -> Path | None:
    """The installed TensorFlow's folder, or None."""
    return package_dir("tensorflow")


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
        raise BuildError(
            f"TensorFlow is not installed. Install it: pip install 'tensorflow{RECOMMENDED_TENSORFLOW}'",
            code="op-tools",
        )
    major, minor = version.split(".")[:2]
    if major != "2" or int(minor) not in _TENSORFLOW_MINORS:
        raise BuildError(
            f"TensorFlow {version} is installed, but this tftoolkit's op host, which is tied to TensorFlow's C++ ABI, "
            f"works with 2.{_TENSORFLOW_MINORS[0]} to 2.{_TENSORFLOW_MINORS[-1]}. "
            f"Mend it: pip install 'tensorflow{RECOMMENDED_TENSORFLOW}'",
            code="op-tools",
        )
    return version


def xla_obstacle() -> str | None:
    """Why the op host cannot serve XLA programs with the installed TensorFlow, or None when it can."""
    folder = tensorflow_dir()
    version = tensorflow_version()
    if folder is None or version is None:
        return "TensorFlow is not installed"
    include = folder / "include"
    for header in ("xla/ffi/api/c_api.h", "tensorflow/compiler/tf2xla/xla_op_kernel.h"):
        if not (include / header).exists():
            return f"TensorFlow {version}'s wheel lacks {header}"
    # 2.19 put this function into the middle of the table that XLA hands to kernels.
    if "XLA_FFI_ThreadPool_NumThreads" not in (include / "xla/ffi/api/c_api.h").read_text():
        return f"the XLA in TensorFlow {version} lacks functions that kernels call; 2.19 is the first that has them"
    return None


def ffi_include_dir() -> Path:
    """The folder with ``xla/ffi/api/ffi.h``: ``$TFTOOLKIT_FFI_INCLUDE``, else TensorFlow's, else JAX's.

    An op library runs in every TensorFlow and JAX whose headers are as new as these, or newer. Raises BuildError when
    there are none.
    """
    wanted = os.environ.get("TFTOOLKIT_FFI_INCLUDE")
    packages = [folder / "include" for folder in map(package_dir, ("tensorflow", "jaxlib")) if folder]
    for include in [Path(wanted)] if wanted else packages:
        if (include / "xla/ffi/api/ffi.h").exists():
            return include
    looked = f"in TFTOOLKIT_FFI_INCLUDE={wanted}" if wanted else "in TensorFlow or JAX"
    raise BuildError(
        f"xla/ffi/api/ffi.h was not found {looked}. TensorFlow 2.20 is the first to ship it; with an older one set "
        "TFTOOLKIT_FFI_INCLUDE to the include folder of TensorFlow 2.20's wheel.",
        code="op-tools",
    )


def ffi_version(include: Path) -> tuple[int, int] | None:
    """The version of XLA's FFI that the headers in this folder declare, or None."""
    header = include / "xla/ffi/api/c_api.h"
    found = re.findall(r"#define XLA_FFI_API_M(?:AJOR|INOR) (\d+)", header.read_text()) if header.exists() else []
    return (int(found[0]), int(found[1])) if len(found) == 2 else None


def package_dir(name: str) -> Path | None:
    """The folder of an installed package, which is not imported; None when there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def run(command: Sequence[str], timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a compiler. It speaks English, whatever the user's language; bytes that are no UTF-8 do no harm."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, check=False, env=environment
    )


def _output(command: list[str]) -> str:
    try:
        done = run(command, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _first_line(command: list[str]) -> str:
    return _output(command).partition("\n")[0].strip()
