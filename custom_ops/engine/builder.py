"""Compiles op libraries and the op host into a cache keyed by content, once for all processes.

The key covers sources, headers, flags, compiler and header versions, so a stale library cannot be picked up. A build
happens in a temporary folder under a lock and appears under its final name by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tftoolkit.custom_ops.engine import toolchain
from tftoolkit.custom_ops.engine.errors import BuildError

# -fopenmp-simd honours `#pragma omp simd` (no OpenMP runtime); without trapping and errno semantics, which no kernel
# can observe, GCC turns conversions between float formats into vector code. None of these changes a result.
CFLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno")
CUDA_CFLAGS = (
    "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--expt-relaxed-constexpr",
    # The FFI header's own harmless warnings: missing return after an exhaustive switch, unreachable code.
    "-diag-suppress", "940,2473",
    # TensorFlow exports stubs of an older cudart into the global scope: a shared cudart would bind to those.
    "-cudart", "static",
    "-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=sm_90",
    "-gencode", "arch=compute_90,code=compute_90",
    "--threads", "0",  # the targets side by side
)  # fmt: skip
_SOURCES = (".cc", ".cpp", ".cxx")
_CUDA_SOURCES = (".cu",)


@dataclass(frozen=True)
class Unit:
    """One translation unit: the source and the command that compiles it, less the output."""

    source: Path
    command: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a shared library: units, link command, version strings of what else has a say.

    The key also depends on the headers that the sources include from their own folders and from ``include_dirs``.
    """

    name: str
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    include_dirs: tuple[Path, ...]
    versions: tuple[str, ...]

    def key(self) -> str:
        """A hash over all that can change the result. Raises BuildError for a source that cannot be read."""
        digest = hashlib.sha256()
        for text in [self.name, *self.versions, *self.link]:
            digest.update(text.encode() + b"\0")
        for unit in self.units:
            # Where things lie does not matter, what is in them does: an installed copy finds the checkout's build.
            flags = [
                flag for flag in unit.command if not flag.startswith(("-I", "-isystem")) and flag != str(unit.source)
            ]
            digest.update("\0".join(flags).encode() + b"\0")
        for path, content in _with_headers((unit.source for unit in self.units), self.include_dirs).items():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()[:20]


def library_recipe(
    name: str,
    sources: Sequence[str | os.PathLike[str]],
    *,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    cuda: bool | str = "auto",
) -> Recipe:
    """How to build an op library from C++ and CUDA sources.

    ``cuda="auto"`` leaves the .cu files out when no CUDA toolkit is installed; True insists on them.
    Raises BuildError for a missing compiler or source and for a source of unknown kind, TypeError or ValueError for
    arguments of another kind.
    """
    if cuda not in (True, False, "auto"):
        raise ValueError(f"cuda must be True, False or 'auto', got {cuda!r}")
    lists = {
        "sources": sources, "extra_cflags": extra_cflags, "extra_cuda_cflags": extra_cuda_cflags,
        "extra_ldflags": extra_ldflags, "include_dirs": include_dirs,
    }  # fmt: skip
    for argument, value in lists.items():
        if isinstance(value, str | os.PathLike):
            raise TypeError(f"{argument} must be a list, got {value!r}")
    if not sources:
        raise ValueError(f"library {name} has no sources")
    paths = [Path(source).resolve() for source in sources]
    for path in paths:
        if path.suffix not in _SOURCES + _CUDA_SOURCES:
            raise BuildError(
                f"{path}: a source ends in one of {', '.join(_SOURCES + _CUDA_SOURCES)}, not {path.suffix!r}"
            )
    includes = [toolchain.INCLUDE_DIR, *(Path(folder).resolve() for folder in include_dirs)]
    include_flags = [f"-I{folder}" for folder in includes]
    system = f"-isystem{toolchain.ffi_include_dir()}"
    compiler = toolchain.cxx()
    versions = [compiler.version, _ffi_version()]
    units = [
        Unit(path, (compiler.path, *CFLAGS, "-Wall", "-Wextra", *extra_cflags, *include_flags, system, "-c", str(path)))
        for path in paths
        if path.suffix in _SOURCES
    ]
    # No symbol may be left over: an op library gets everything it needs from its host through the call frame.
    link = [compiler.path, "-shared", "-Wl,-z,defs", *extra_ldflags]
    if any(path.suffix in _CUDA_SOURCES for path in paths) and (cuda is True or (cuda == "auto" and toolchain.nvcc())):
        root = toolchain.cuda_root()  # raises where cuda=True and there is no toolkit
        nvcc = toolchain.nvcc()
        assert nvcc is not None
        versions.append(nvcc.version)
        units += [
            Unit(
                path,
                (
                    nvcc.path,
                    *CUDA_CFLAGS,
                    *extra_cuda_cflags,
                    *include_flags,
                    system.replace("-isystem", "-isystem="),
                    "-c",
                    str(path),
                ),
            )
            for path in paths
            if path.suffix in _CUDA_SOURCES
        ]
        # Hidden, so that these symbols and TensorFlow's own CUDA stubs cannot be taken for one another.
        link += [f"-L{root}/lib64", "-lcudart_static", "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"]
    folders = [*includes, *_include_folders([*extra_cflags, *extra_cuda_cflags])]
    return Recipe(name, tuple(units), tuple(link), tuple(folders), tuple(versions))


def host_recipe() -> Recipe:
    """How to build the op host for the installed TensorFlow. Raises BuildError for an unsupported or missing one."""
    version = toolchain.check_tensorflow()
    folder = toolchain.tensorflow_dir()
    assert folder is not None
    include = folder / "include"
    compiler = toolchain.cxx()
    obstacle = toolchain.xla_obstacle()
    # TensorFlow's headers are included as system headers: their warnings are not ours to mend.
    system = [
        include,
        *(include / "external" / sub for sub in ("highwayhash", "farmhash_archive/src", "farmhash_gpu_archive/src")),
    ]
    flags = [
        "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
        "-D_GLIBCXX_USE_CXX11_ABI=1", "-DEIGEN_MAX_ALIGN_BYTES=64",
        f"-DTK_TENSORFLOW_MINOR={version.split('.')[1]}",
        *([f'-DTK_WITHOUT_XLA="{obstacle}"'] if obstacle else []),
        *(f"-isystem{path}" for path in system),
    ]  # fmt: skip
    source_dir = Path(__file__).resolve().parent / "host"
    # The XLA half takes longest: it goes first, so that the others are built beside it.
    sources = sorted(source_dir.glob("*.cc"), key=lambda path: (path.name != "xla_kernel.cc", path.name))
    units = tuple(Unit(path, (compiler.path, *flags, "-c", str(path))) for path in sources)
    # TensorFlow's libraries are not named: `import tensorflow` has put their symbols into the global scope.
    return Recipe("host", units, (compiler.path, "-shared"), (), (version, compiler.version))


def build(recipe: Recipe, *, cache_dir: str | os.PathLike[str] | None = None, verbose: bool = False) -> Path:
    """The compiled library of ``recipe``: from the cache, or compiled now with a progress line.

    Raises BuildError with the compiler's first error and its source line.
    """
    folder = cache_folder(cache_dir)
    library = folder / f"{recipe.name}-{recipe.key()}.so"
    if library.exists():
        return library
    with FileLock(folder / f"{library.name}.lock"):
        if not library.exists():  # another process may have built it while this one waited
            with _progress(f"compiling {recipe.name} ({len(recipe.units)} files)"):
                _compile(recipe, library, verbose)
    return library


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The private cache folder: the argument, ``$TFTOOLKIT_CACHE_DIR``, or ~/.cache/tftoolkit; made with mode 0700.

    Raises BuildError when it cannot be made, or belongs to or can be written by somebody else: whoever can write there
    can run code in this process.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tftoolkit"
    folder = Path(cache_dir or os.environ.get("TFTOOLKIT_CACHE_DIR") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
    except OSError as error:
        raise BuildError(
            f"cannot make the cache folder {folder}: {error}. Set TFTOOLKIT_CACHE_DIR to another."
        ) from error
    if info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(
            f"the cache folder {folder} can be written by others (owner {info.st_uid}, {stat.filemode(info.st_mode)}). "
            "Make it yours with mode 0700, or set TFTOOLKIT_CACHE_DIR to another."
        )
    return folder


def compile_commands(recipes: Sequence[Recipe]) -> str:
    """The compilation database (compile_commands.json) that editors and clang tools read."""
    entries = [
        {"directory": str(unit.source.parent), "file": str(unit.source), "arguments": list(unit.command)}
        for recipe in recipes
        for unit in recipe.units
    ]
    return json.dumps(entries, indent=1) + "\n"


def _compile(recipe: Recipe, library: Path, verbose: bool) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{recipe.name}-", dir=library.parent) as temp:
        objects = [Path(temp) / f"{index}-{unit.source.stem}.o" for index, unit in enumerate(recipe.units)]
        commands = [[*unit.command, "-o", str(obj)] for unit, obj in zip(recipe.units, objects, strict=True)]
        # The units' own threads only wait for compilers.
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            for _ in pool.map(lambda command: _run(recipe.name, command, verbose), commands):
                pass
        linked = Path(temp) / "library.so"
        driver, *flags = recipe.link
        _run(recipe.name, [driver, *map(str, objects), *flags, "-o", str(linked)], verbose)
        shutil.move(linked, library)


def _run(name: str, command: list[str], verbose: bool) -> None:
    if verbose:
        print(" ".join(command), file=sys.stderr)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{name}: cannot run {command[0]}: {error}") from error
    output = done.stderr + done.stdout
    if verbose and output:
        print(output, file=sys.stderr)
    if done.returncode != 0:
        raise BuildError(f"{name} does not compile:\n{_first_error(output)}\nThe command was: {' '.join(command)}")


def _first_error(output: str) -> str:
    """The compiler's first error with the source excerpt below it, out of what may be hundreds of lines."""
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if re.search(r"\b(fatal )?error\b|fatal\s*:|undefined reference", line)]
    if not starts:
        return output.strip() or "the compiler gave no reason"
    start = starts[0]
    end = start + 1
    while end < len(lines) and end < start + 6 and re.match(r"\s|\d+ *\|", lines[end]):
        end += 1  # GCC draws a bar beside the excerpt, nvcc indents it
    return "\n".join(lines[start:end]).rstrip()


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    print(f"tftoolkit: {what} …", end="", file=sys.stderr, flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print(" failed", file=sys.stderr, flush=True)
        raise
    print(f" {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE)


def _with_headers(sources: Iterable[Path], folders: Sequence[Path]) -> dict[Path, bytes]:
    """The contents of the sources and of all headers that they include from their own places and from ``folders``.

    Headers found nowhere are the system's, for which the compiler's version stands. Conditions are not evaluated: one
    header too many costs a compilation, one too few would give a stale library.
    """
    contents = {source: _read(source) for source in sources}
    queue = list(contents)
    while queue:
        file = queue.pop()
        for quoted, bracketed in _INCLUDE.findall(contents[file]):
            places = [file.parent, *folders] if quoted else folders
            candidates = (Path(os.path.normpath(place / os.fsdecode(quoted or bracketed))) for place in places)
            header = next((path for path in candidates if path.is_file()), None)
            if header is not None and header not in contents:
                contents[header] = _read(header)
                queue.append(header)
    return contents


def _include_folders(flags: Sequence[str]) -> list[Path]:
    """The folders that compiler flags add to the search for headers."""
    folders = []
    for flag, following in itertools.zip_longest(flags, flags[1:], fillvalue=""):
        for option in ("-I", "-iquote", "-isystem", "-idirafter"):
            if flag.startswith(option):
                folders.append(Path(flag.removeprefix(option) or following).resolve())
    return folders


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuildError(f"cannot read the source {path}: {error.strerror}") from error


def _ffi_version() -> str:
    return f"XLA FFI {toolchain.ffi_version(toolchain.ffi_include_dir())}"
