"""Compiles op libraries and the op host into a cache keyed by content, once for all processes.

The key covers sources, headers, flags, compiler and header versions; what else the compilers read stands in a record
(see ``dependencies``), so a stale library cannot be picked up. A build happens in a temporary folder under a lock and
appears under its final name by one rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from tftoolkit.custom_ops.engine import compiling, dependencies, toolchain
from tftoolkit.custom_ops.engine.compiling import Unit
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
# Other values of ``cuda`` → what makes their recipes. Parts above the engine add theirs.
CUDA_RECIPES: dict[str, Callable[..., Recipe]] = {}
_SOURCES = (".cc", ".cpp", ".cxx")
_CUDA_SOURCES = (".cu",)
_FORMAT = "2"  # of the cache


@dataclass(frozen=True)
class Recipe:
    """Everything that makes a shared library: units, link command, version strings of what else has a say.

    The key also depends on the headers that the sources include from their own folders and from ``include_dirs``, and
    on what ``dependencies.surroundings`` finds. ``pinned`` are folders for whose content one of the versions stands.
    """

    name: str
    units: tuple[Unit, ...]
    link: tuple[str, ...]
    include_dirs: tuple[Path, ...]
    versions: tuple[str, ...]
    pinned: tuple[Path, ...] = ()

    @property
    def flags(self) -> list[str]:
        return [*itertools.chain.from_iterable(unit.command for unit in self.units), *self.link]

    @property
    def sources(self) -> list[Path]:
        return list(itertools.chain.from_iterable(unit.sources for unit in self.units))

    def key(self) -> str:
        """A hash over all that can change the result. Raises BuildError for a source that cannot be read."""
        digest = hashlib.sha256()
        named = [str(path) for path in dependencies.named_by(self.link)]
        for text in [_FORMAT, self.name, *self.versions, *self.link, *dependencies.surroundings(self.flags), *named]:
            digest.update(text.encode() + b"\0")
        for unit in self.units:
            # Where things lie does not matter, what is in them does: an installed copy finds the checkout's build.
            flags = [flag for flag in unit.command if not flag.startswith(("-I", "-isystem"))]
            digest.update("\0".join(flags).encode() + b"\0")
        for path, content in self.headers().items():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()[:20]

    def headers(self) -> dict[Path, bytes]:
        """The sources and the headers that stand in the key. Raises BuildError for a source that cannot be read."""
        return with_headers(self.sources, self.include_dirs)

    def others(self, read: Iterable[Path]) -> list[Path]:
        """The files that went into a build and do not stand in the key; ``read`` are those that compilers read."""
        known = {os.path.abspath(path) for path in self.headers()}
        pinned = tuple(f"{os.path.abspath(folder)}{os.sep}" for folder in self.pinned)
        files = {*map(os.path.normpath, [*read, *dependencies.named_by(self.flags)])} - known
        return [Path(path) for path in sorted(files) if not path.startswith(pinned) and os.path.isfile(path)]


def library_recipe(
    name: str,
    sources: Sequence[str | os.PathLike[str]],
    *,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    cuda: bool | str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Recipe:
    """How to build an op library from C++ and CUDA sources.

    ``cuda="auto"`` takes the .cu files in where there is a CUDA toolkit and either a GPU or, in the cache, the library
    that an earlier build with True made; True insists on them. Raises BuildError for a missing
    compiler or source and for a source of unknown kind, TypeError or ValueError for arguments of another kind.
    """
    if cuda not in (True, False, "auto", *CUDA_RECIPES):
        named = " or ".join(map(repr, ("auto", *CUDA_RECIPES)))
        raise ValueError(f"cuda must be True, False, {named}, got {cuda!r}")
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
        if path.suffix not in (known := _SOURCES + _CUDA_SOURCES):
            told = f"{path}: a source ends in one of {', '.join(known)}, not {path.suffix!r}"
            raise BuildError(told, code="op-sources")
    if isinstance(cuda, str) and cuda in CUDA_RECIPES:
        return CUDA_RECIPES[cuda](
            name, paths, extra_cflags=extra_cflags, extra_cuda_cflags=extra_cuda_cflags, extra_ldflags=extra_ldflags,
            include_dirs=[Path(folder).resolve() for folder in include_dirs], cache_dir=cache_dir,
        )  # fmt: skip
    includes = [toolchain.INCLUDE_DIR, *(Path(folder).resolve() for folder in include_dirs)]
    include_flags = [f"-I{folder}" for folder in includes]
    system = f"-isystem{toolchain.ffi_include_dir()}"
    compiler = toolchain.cxx()
    recipe = Recipe(
        name,
        units=tuple(
            Unit((path,), (*compiler.command, *CFLAGS, "-Wall", "-Wextra", *extra_cflags, *include_flags, system))
            for path in paths
            if path.suffix in _SOURCES
        ),
        # No symbol may be left over: an op library gets everything it needs from its host through the call frame.
        link=(*compiler.command, "-shared", "-Wl,-z,defs", *extra_ldflags),
        include_dirs=(*includes, *_include_folders([*extra_cflags, *extra_cuda_cflags])),
        versions=(compiler.version, _ffi_version()),
        pinned=(toolchain.ffi_include_dir(),),
    )
    cuda_sources = [path for path in paths if path.suffix in _CUDA_SOURCES]
    if not cuda_sources or cuda is False or (cuda == "auto" and toolchain.nvcc() is None):
        return recipe
    flags = [*extra_cuda_cflags, *include_flags, system.replace("-isystem", "-isystem=")]
    full = _with_cuda(recipe, cuda_sources, flags)
    wanted = cuda is True or toolchain.has_gpu() or library_path(full, cache_dir=cache_dir).exists()
    return full if wanted else recipe


def _with_cuda(recipe: Recipe, sources: Sequence[Path], flags: Sequence[str]) -> Recipe:
    """The recipe with CUDA sources in it. Raises BuildError where there is no CUDA toolkit."""
    root = toolchain.cuda_root()
    nvcc = toolchain.nvcc()
    assert nvcc is not None  # cuda_root() has checked
    return replace(
        recipe,
        units=(*recipe.units, *(Unit((path,), (*nvcc.command, *CUDA_CFLAGS, *flags)) for path in sources)),
        # Hidden, so that these symbols and TensorFlow's own CUDA stubs cannot be taken for one another.
        link=(
            *recipe.link, f"-L{root}/lib64", "-lcudart_static", "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread",
        ),
        versions=(*recipe.versions, nvcc.version),
    )  # fmt: skip


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
        "-std=c++17", "-O2", "-fopenmp-simd", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra",
        "-D_GLIBCXX_USE_CXX11_ABI=1", "-DEIGEN_MAX_ALIGN_BYTES=64",
        f"-DTK_TENSORFLOW_MINOR={version.split('.')[1]}",
        *([f'-DTK_WITHOUT_XLA="{obstacle}"'] if obstacle else []),
        *(f"-isystem{path}" for path in system),
    ]  # fmt: skip
    # As one unit: TensorFlow's headers take ten times as long as all that the host says itself.
    sources = tuple(sorted((Path(__file__).resolve().parent / "host").glob("*.cc")))
    unit = Unit(sources, (*compiler.command, *flags))
    # TensorFlow's libraries are not named: `import tensorflow` has put their symbols into the global scope.
    return Recipe("host", (unit,), (*compiler.command, "-shared"), (), (version, compiler.version), (include,))


def build(recipe: Recipe, *, cache_dir: str | os.PathLike[str] | None = None, verbose: bool = False) -> Path:
    """The compiled library of ``recipe``: from the cache, or compiled now with progress on stderr.

    Raises BuildError with the compiler's first error and its source line.
    """
    return build_all([recipe], cache_dir=cache_dir, verbose=verbose)[0]


def build_all(
    recipes: Sequence[Recipe], *, cache_dir: str | os.PathLike[str] | None = None, verbose: bool = False
) -> list[Path]:
    """The compiled libraries of ``recipes``, in their order; what is not in the cache is compiled side by side.

    Raises BuildError with the compiler's first error and its source line.
    """
    folder = cache_folder(cache_dir)
    bases = [folder / f"{recipe.name}-{recipe.key()}" for recipe in recipes]
    found = {base: path for base in bases if (path := _find(base))}
    missing = {base: recipe for base, recipe in zip(bases, recipes, strict=True) if base not in found}
    if missing:
        cache_folder(cache_dir, writable=True)
    with contextlib.ExitStack() as stack:
        # In one order in all processes, or two could wait for each other.
        locks = {base: stack.enter_context(FileLock(f"{base}.so.lock")) for base in sorted(missing)}
        found |= {base: path for base in missing if (path := _find(base))}  # built while this one waited
        targets = [
            compiling.Target(recipe.name, base, recipe.units, recipe.link)
            for base, recipe in missing.items()
            if base not in found
        ]
        began = time.time()
        for built in compiling.compile_all(targets, verbose=verbose):
            base = built.target.path
            state = dependencies.stamps(missing[base].others(built.files), began)
            found[base] = base.with_name(f"{base.name}-{dependencies.digest(state)}.so")
            os.replace(built.library, found[base])
            dependencies.add(base.with_name(f"{base.name}.json"), found[base].name, state)
            locks[base].release()
    return [found[base] for base in bases]


def library_path(recipe: Recipe, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the compiled library of ``recipe`` lies in the cache, or, if there is none, where one may be put.

    Raises BuildError.
    """
    base = cache_folder(cache_dir) / f"{recipe.name}-{recipe.key()}"
    return _find(base) or _plain(base)


def _find(base: Path) -> Path | None:
    """The library made of what lies on the disk now; one without a record was put there by somebody who knows."""
    record = base.with_name(f"{base.name}.json")
    path = dependencies.recorded(record) if record.exists() else _plain(base)
    return path if path is not None and path.exists() else None


def _plain(base: Path) -> Path:
    return base.with_name(f"{base.name}.so")


def cache_folder(cache_dir: str | os.PathLike[str] | None = None, *, writable: bool = False) -> Path:
    """The private cache folder: the argument, ``$TFTOOLKIT_CACHE_DIR``, or ~/.cache/tftoolkit; made with mode 0700.

    Raises BuildError when it cannot be made, or when somebody else than this user and root can write there: who can,
    can run code in this process. One of root's is read; BuildError too if it must be ``writable`` and is not.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tftoolkit"
    folder = Path(cache_dir or os.environ.get("TFTOOLKIT_CACHE_DIR") or default)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
    except OSError as error:
        raise BuildError(
            f"cannot make the cache folder {folder}: {error}. Set TFTOOLKIT_CACHE_DIR to another.", code="op-cache"
        ) from error
    owner = f"owner {info.st_uid}, {stat.filemode(info.st_mode)}"
    if info.st_uid not in (os.getuid(), 0) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(
            f"the cache folder {folder} can be written by others ({owner}). "
            "Make it yours with mode 0700, or set TFTOOLKIT_CACHE_DIR to another.",
            code="op-cache",
        )
    if writable and not os.access(folder, os.W_OK):
        raise BuildError(
            f"what is asked for is not in the cache folder {folder}, and this user cannot write there ({owner}). "
            "Compile it as the owner, or set TFTOOLKIT_CACHE_DIR to another.",
            code="op-cache",
        )
    return folder


def write_once(path: Path, text: str) -> None:
    """Writes a file that other processes may be writing just now, or reading; one that is there stays."""
    if not path.exists():
        temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{path.name}")
        temporary.write_text(text)
        os.replace(temporary, path)


def compile_commands(recipes: Sequence[Recipe]) -> str:
    """The compilation database (compile_commands.json) that editors and clang tools read."""
    entries = [
        {"directory": str(source.parent), "file": str(source), "arguments": [*unit.command, "-c", str(source)]}
        for recipe in recipes
        for unit in recipe.units
        for source in unit.sources
    ]
    return json.dumps(entries, indent=1) + "\n"


_INCLUDE = re.compile(
    rb'(?:^[ \t]*#[ \t]*include[ \t]*|__has_include[ \t]*\()(?:"([^"\n]+)"|<([^>\n]+)>)', re.MULTILINE
)


def with_headers(sources: Iterable[Path], folders: Sequence[Path]) -> dict[Path, bytes]:
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
        raise BuildError(f"cannot read the source {path}: {error.strerror}", code="op-sources") from error


def _ffi_version() -> str:
    return f"XLA FFI {toolchain.ffi_version(toolchain.ffi_include_dir())}"
