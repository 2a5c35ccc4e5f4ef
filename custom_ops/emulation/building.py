"""Recipes for op libraries whose CUDA kernels run on the CPU.

Such a library has three kinds of parts: the .cu files, rewritten and instrumented; the .cc files, of which the schemas
alone are kept; and, linked to it, the emulator's own library, which is compiled once for all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from tftoolkit.custom_ops.emulation import rewriting
from tftoolkit.custom_ops.engine import builder, toolchain
from tftoolkit.custom_ops.engine.compiling import Unit
from tftoolkit.custom_ops.engine.errors import BuildError

_HERE = Path(__file__).resolve().parent
_INCLUDE_DIR = _HERE / "include"
_TRACED_FUNCTIONS = ("memcpy", "memmove", "memset")  # of the C library, which the emulator's own stand in for
_COMMON = ("-std=c++17", "-fPIC")
# Every load and store of the kernel must reach the tracer as the source has it: none as part of a wider one, or of a
# call of memset. Rounding is one operation at a time.
_KERNEL = (
    "-x", "c++", "-O2", "-g1", "-fvisibility=hidden", "-fsanitize=thread", "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize", "-fno-tree-loop-distribute-patterns", "-fno-store-merging", "-ffp-contract=off",
    "-fno-math-errno", *(f"-fno-builtin-{name}" for name in _TRACED_FUNCTIONS), "-DTK_EMULATED", "-Wno-unknown-pragmas",
    "-include", "tftoolkit/emulation/kernel.h", "-include", "cuda_runtime.h",
)  # fmt: skip
_WRAPPED = tuple(f"-Wl,--wrap={name}" for name in (*_TRACED_FUNCTIONS, "__assert_fail"))
_SCHEMAS = ("-O0", "-fvisibility=hidden", "-DTK_EMULATED", "-include", "tftoolkit/emulation/schema_only.h")


def library_recipe(
    name: str,
    sources: Sequence[Path],
    *,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    include_dirs: Sequence[Path] = (),
    cache_dir: str | os.PathLike[str] | None = None,
) -> builder.Recipe:
    """How to build an op library from C++ and CUDA sources, with the CUDA kernels as its kernels for the CPU.

    ``builder.library_recipe`` with ``cuda="emulated"`` calls this. Of ``extra_cuda_cflags`` macros and include folders
    count; the others are for nvcc. The emulator is compiled, and the rewritten sources are put into the cache, by now.

    Raises BuildError where a source cannot be read or rewritten, and for sources without a .cu file.
    """
    cuda_sources = [path for path in sources if path.suffix == ".cu"]
    if not cuda_sources:
        listed = ", ".join(path.name for path in sources)
        raise BuildError(
            f"cuda='emulated' runs CUDA kernels, and library {name} has no .cu file among {listed}", code="op-sources"
        )
    runtime = builder.build(runtime_recipe(), cache_dir=cache_dir)
    compiler = toolchain.cxx()
    includes = [_INCLUDE_DIR, toolchain.INCLUDE_DIR, *include_dirs]
    system = f"-isystem{toolchain.ffi_include_dir()}"
    rewritten = _rewrite(name, cuda_sources, [*include_dirs, toolchain.INCLUDE_DIR], cache_dir)
    folders = [*dict.fromkeys(path.parent for path in sources)]
    kernel_flags = [  # the rewritten headers before those that they were made of
        *_COMMON, *_KERNEL, *(f"-iquote{folder}" for folder in (rewritten, *folders)), f"-I{rewritten}",
        *map("-I{}".format, includes), system, *_for_cxx(extra_cuda_cflags),
    ]  # fmt: skip
    schema_flags = [*_COMMON, *_SCHEMAS, *map("-I{}".format, includes), system, *extra_cflags]
    units = [
        Unit((rewritten / _place(i, path),), (*compiler.command, *kernel_flags)) for i, path in enumerate(cuda_sources)
    ]
    units += [Unit((path,), (*compiler.command, *schema_flags)) for path in sources if path not in cuda_sources]
    return builder.Recipe(
        name,
        units=tuple(units),
        link=(*compiler.command, "-shared", "-Wl,-z,defs", *_WRAPPED, *extra_ldflags, str(runtime)),
        include_dirs=(rewritten, *folders, *includes),
        versions=(compiler.version, "emulated"),
        pinned=(toolchain.ffi_include_dir(),),
    )


def runtime_recipe() -> builder.Recipe:
    """How to build the emulator's library."""
    compiler = toolchain.cxx()
    includes = [_INCLUDE_DIR, toolchain.INCLUDE_DIR]
    flags = [*_COMMON, "-O2", "-Wall", "-Wextra", *map("-I{}".format, includes)]
    flags.append(f"-isystem{toolchain.ffi_include_dir()}")
    sources = tuple(sorted((_HERE / "runtime").glob("*.cc")))
    return builder.Recipe(
        "emulation",
        units=(Unit(sources, (*compiler.command, *flags)),),
        link=(*compiler.command, "-shared", "-Wl,-z,defs", "-ldl"),
        include_dirs=tuple(includes),
        versions=(compiler.version,),
        pinned=(toolchain.ffi_include_dir(),),
    )


def _for_cxx(flags: Sequence[str]) -> list[str]:
    """Those of nvcc's flags that define a macro or add an include folder."""
    kept, options = [], ("-D", "-U", "-I", "-isystem")
    for flag, before in zip(flags, ("", *flags), strict=False):
        if flag.startswith(options) or before in options:
            kept.append(flag.replace("-isystem=", "-isystem"))
    return kept


def _rewrite(
    name: str, sources: Sequence[Path], folders: Sequence[Path], cache_dir: str | os.PathLike[str] | None
) -> Path:
    """A folder in the cache with the rewritten sources and their headers.

    Of the kernel authors' headers, which lie in ``toolchain.INCLUDE_DIR``, those alone that must be rewritten.
    """
    texts: dict[str, str] = {}
    for path, content in builder.with_headers(sources, folders).items():
        text = content.decode(errors="replace")
        if path in sources:
            texts[_place(sources.index(path), path)] = rewriting.rewrite(text, path)
        elif rewriting.is_cuda(text) or not path.is_relative_to(toolchain.INCLUDE_DIR):
            texts[_spelling(path, sources, folders)] = rewriting.rewrite(text, path)
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:20]
    folder = builder.cache_folder(cache_dir, writable=True) / "emulated" / f"{name}-{digest}"
    for spelling, text in texts.items():
        target = folder / spelling
        target.parent.mkdir(parents=True, exist_ok=True)
        builder.write_once(target, text)
    return folder


def _place(number: int, source: Path) -> str:
    """Where a rewritten source lies; two may have one name."""
    return f"{number}/{source.name}.cc"


def _spelling(header: Path, sources: Sequence[Path], folders: Sequence[Path]) -> str:
    """How an ``#include`` names the header, from the first folder that holds it."""
    for folder in [*folders, *(source.parent for source in sources)]:
        if header.is_relative_to(folder):
            return str(header.relative_to(folder))
    return header.name
