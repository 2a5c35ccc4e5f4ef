"""``tftoolkit doctor``: what is there, what is missing, and the command that mends it."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Callable

from tftoolkit.cli.parser import Parser
from tftoolkit.custom_ops.engine import builder, library, toolchain
from tftoolkit.custom_ops.engine.errors import BuildError, LoadError

# Distribution → what to do when it is missing; None: it is needed, and comes with tftoolkit.
_PACKAGES: dict[str, str | None] = {
    "tensorflow": None,
    "tensorflow-datasets": None,
    "numpy": None,
    "ml-collections": None,
    "scikit-learn": None,
    "ai-edge-litert": "pip install 'tftoolkit[export]'",
    "tf-keras": "pip install 'tftoolkit[export]'",
    "jax": "pip install 'tftoolkit[jax]'",
}


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "",
        "Says what is installed, what is missing, and how to mend it: packages, compilers, compiled ops.",
        "tftoolkit doctor",
        exit_codes="0 all is there that is needed, 1 something is missing",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the findings. Returns 1 when something is missing that the core needs."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("Python", lambda: f"{platform.python_version()} ({sys.executable})", True),
        *((name, lambda name=name: _package(name), fix is None) for name, fix in _PACKAGES.items()),
        ("TensorFlow version", toolchain.check_tensorflow, True),
        ("C++ compiler", lambda: toolchain.cxx().version, True),
        ("CUDA toolkit", _cuda, False),
        ("XLA FFI headers", lambda: str(toolchain.ffi_include_dir()), True),
        ("build cache", lambda: str(builder.cache_folder()), True),
        ("op host", lambda: _built(builder.host_recipe()), True),
        *((f"op {name}", lambda name=name: _op(name), True) for name in library.builtin_folders()),
    ]
    failed = 0
    for what, look, needed in checks:
        try:
            verdict, text = "ok", look()
        except (BuildError, LoadError, OSError) as error:
            verdict, text = ("MISSING" if needed else "absent"), str(error)
            failed += needed
        print(f"{verdict:8}{what:21} {text}")
    print("\n" + (f"{failed} of these must be mended." if failed else "Everything that is needed is there."))
    return 1 if failed else 0


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise BuildError(
            f"not installed; mend it: {_PACKAGES[name] or 'pip install --force-reinstall tftoolkit'}", code="op-tools"
        ) from None


def _cuda() -> str:
    compiler = toolchain.nvcc()
    if compiler is None:
        raise BuildError(
            "no nvcc; ops run on the CPU. For GPUs install CUDA 12.8 or newer, or set CUDA_HOME", code="op-tools"
        )
    return f"{compiler.version} ({toolchain.cuda_root()})"


def _built(recipe: builder.Recipe) -> str:
    path = builder.library_path(recipe)
    if not path.exists():
        return "not compiled yet; it will be on first use, or now with: tftoolkit ops build"
    return str(path)


def _op(folder: str) -> str:
    text = _built(library.builtin_recipe(folder))
    if not text.endswith(".so"):
        return text
    handlers = library.load_builtin(folder).handlers
    platforms = sorted({platform for kernels in handlers.values() for platform in kernels})
    return f"{', '.join(sorted(handlers))} for {', '.join(platforms)}"
