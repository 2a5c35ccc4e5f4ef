"""Op libraries: shared objects that carry their own declarations. Needs neither TensorFlow nor JAX."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tftoolkit.custom_ops.engine import builder
from tftoolkit.custom_ops.engine.declaration import attribute_name, camel_case
from tftoolkit.custom_ops.engine.errors import LoadError
from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.engine.schema import Schema
from tftoolkit.custom_ops.engine.schema_parser import parse
from tftoolkit.custom_ops.engine.schema_tokens import SchemaError

_PACKAGE = Path(__file__).resolve().parents[1]  # custom_ops, one folder per op
_DELEGATE = "tflite_delegate"
_ABI = 1  # TK_LIBRARY_ABI in include/tftoolkit/op.h, whose structs these are


class _OpDeclaration(ctypes.Structure):
    pass


_OpDeclaration._fields_ = [
    ("name", ctypes.c_char_p), ("schema", ctypes.c_char_p), ("file", ctypes.c_char_p), ("line", ctypes.c_int32),
    ("next", ctypes.POINTER(_OpDeclaration)),
]  # fmt: skip


class _KernelDeclaration(ctypes.Structure):
    pass


_KernelDeclaration._fields_ = [
    ("op", ctypes.c_char_p), ("platform", ctypes.c_char_p), ("handler", ctypes.c_void_p), ("file", ctypes.c_char_p),
    ("line", ctypes.c_int32), ("next", ctypes.POINTER(_KernelDeclaration)),
]  # fmt: skip


class _Library(ctypes.Structure):
    _fields_ = [
        ("abi", ctypes.c_int32), ("ffi_major", ctypes.c_int32), ("ffi_minor", ctypes.c_int32),
        ("ops", ctypes.POINTER(_OpDeclaration)), ("kernels", ctypes.POINTER(_KernelDeclaration)),
    ]  # fmt: skip


class OpLibrary:
    """An opened op library; ``open_library`` or ``load`` makes it. ``library.scale`` is its op Scale.

    Ops that would hide what is listed here, and those named like a Python keyword, have an underscore behind their
    names: ``library.path_``. Copies are the library itself; in another process pickle opens it again.

    Attributes:
      name: namespace of its ops in TensorFlow: ``<name>>RmsNorm``.
      path: the shared object.
      schemas: op name → parsed schema.
      handlers: op name → platform ("CPU", "CUDA") → address of the FFI handler.
      made: op name → op, of those that were asked for.
      ffi_version: of the XLA FFI headers that it was compiled against, such as (0, 2); hosts with older ones refuse it.

    Raises LoadError when the file is no op library, was made for another version of tftoolkit, or declares something
    twice or under a name that TensorFlow does not take, and
    ``SchemaError`` (with the place of the declaration) when a schema cannot be read.
    """

    def __init__(self, name: str, path: str | os.PathLike[str]) -> None:
        self.name = name
        self.path = Path(path)
        self.schemas: dict[str, Schema] = {}
        self.handlers: dict[str, dict[str, int]] = {}
        self.made: dict[str, Op] = {}
        self._lock = threading.RLock()
        try:
            self._shared_object = ctypes.CDLL(str(path))
            declarations = self._shared_object.tk_library
        except OSError as error:
            raise LoadError(f"cannot open the op library {path}: {error}") from error
        except AttributeError as error:
            raise LoadError(
                f"{path} is not an op library: it declares no op. Did a source include tftoolkit/op.h?"
            ) from error
        declarations.restype = ctypes.POINTER(_Library)
        self._read(declarations().contents)

    def _read(self, library: _Library) -> None:
        if library.abi != _ABI:
            raise LoadError(
                f"{self.path} was compiled for op.h version {library.abi}, this tftoolkit reads {_ABI}: rebuild it"
            )
        self.ffi_version = library.ffi_major, library.ffi_minor
        places: dict[Any, str] = {}  # where everything is declared
        declared = library.ops
        while declared:
            op = declared.contents
            name, place = op.name.decode(), f"{op.file.decode()}:{op.line}"
            if not re.fullmatch(r"[A-Z]\w*", name, re.ASCII):
                raise LoadError(
                    f"{place}: TensorFlow wants an op's name to begin with a capital letter, got {name}",
                    code="op-declaration",
                )
            short = attribute_name(name)
            if short in places:
                raise LoadError(
                    f"{place}: {self.name}.{short} is declared already at {places[short]}", code="op-declaration"
                )
            places[short] = place
            try:
                self.schemas[name] = parse(op.schema.decode())
            except SchemaError as error:
                error.add_note(f"in TK_OP({name}, ...) at {place}")
                raise
            self.handlers[name] = {}
            declared = op.next
        kernels = library.kernels
        while kernels:
            kernel = kernels.contents
            name, platform = kernel.op.decode(), kernel.platform.decode()
            place = f"{kernel.file.decode()}:{kernel.line}"
            if name not in self.handlers:
                raise LoadError(
                    f"{place}: TK_KERNEL names op {name}, but the library declares {', '.join(self.schemas)}",
                    code="op-declaration",
                )
            if platform not in ("CPU", "CUDA"):
                raise LoadError(
                    f"{place}: unknown platform {platform} for op {name}; there are CPU and CUDA", code="op-declaration"
                )
            if platform in self.handlers[name]:
                raise LoadError(
                    f"{place}: op {name} has a {platform} kernel already, from {places[name, platform]}; which of the "
                    "two it would get is chance: remove one",
                    code="op-declaration",
                )
            places[name, platform] = place
            self.handlers[name][platform] = kernel.handler
            kernels = kernel.next

    def op(self, name: str) -> Op:
        """The op declared as TK_OP(name, ...), a callable. Raises KeyError with the names there are."""
        if name not in self.schemas:
            raise KeyError(f"{self.name} has no op {name!r}; it declares {', '.join(self.schemas)}")
        with self._lock:
            if name not in self.made:
                self.made[name] = Op(self, name)
            return self.made[name]

    def __copy__(self) -> OpLibrary:
        return self

    def __deepcopy__(self, memo: Any) -> OpLibrary:
        return self

    def __reduce__(self) -> tuple[Callable[..., OpLibrary], tuple[str, Path]]:
        return open_library, (self.name, self.path)

    def register(self) -> None:
        """Makes all ops known to TensorFlow, before a SavedModel that holds them is loaded, say. Calls do it too."""
        for name in self.schemas:
            _ = self.op(name).tf_name

    def __getattr__(self, name: str) -> Op:
        """``library.rms_norm`` is ``library.op("RmsNorm")``."""
        for declared in self.__dict__.get("schemas", ()):
            if attribute_name(declared) == name:
                return self.op(declared)
        raise AttributeError(f"{self.__dict__.get('name')} has no op {name!r}; it has {', '.join(self.__dir__())}")

    def __dir__(self) -> list[str]:
        return [*map(attribute_name, self.__dict__.get("schemas", ()))]

    def __repr__(self) -> str:
        return f"OpLibrary({self.name!r}: {', '.join(f'{name}{text}' for name, text in self.schemas.items())})"


def load(
    name: str,
    sources: Sequence[str | os.PathLike[str]],
    *,
    extra_cflags: Sequence[str] = (),
    extra_cuda_cflags: Sequence[str] = (),
    extra_ldflags: Sequence[str] = (),
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    cuda: bool | str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: bool = False,
) -> OpLibrary:
    """Compiles C++ and CUDA sources (once; see ``builder``) and opens the op library.

    Args:
      name: namespace of the ops in TensorFlow, where ``my_ops`` becomes ``MyOps``; an identifier.
      sources: .cc/.cpp/.cxx and .cu files.
      extra_cflags, extra_cuda_cflags, extra_ldflags: more words for the C++ compiler, nvcc, and the linker.
      include_dirs: where else to look for headers; the folders of the sources are looked in anyway.
      cuda: "auto" compiles .cu files where there is an NVIDIA GPU and a CUDA toolkit, True without a GPU too;
        "emulated" makes their kernels the CPU's, which run slowly and find their own faults (see ``emulation``).
      cache_dir: where the result is kept; see ``builder.cache_folder``.
      verbose: prints the commands and all the compiler says.

    Raises ValueError for a bad name or no source, TypeError for a string in place of a list, BuildError when compiling
    fails, LoadError or SchemaError for a bad library.
    """
    name = _namespace(name)
    recipe = builder.library_recipe(
        name, sources, extra_cflags=extra_cflags, extra_cuda_cflags=extra_cuda_cflags, extra_ldflags=extra_ldflags,
        include_dirs=include_dirs, cuda=cuda, cache_dir=cache_dir,
    )  # fmt: skip
    opened = open_library(name, builder.build(recipe, cache_dir=cache_dir, verbose=verbose))
    options = {
        "extra_cflags": extra_cflags, "extra_cuda_cflags": extra_cuda_cflags, "extra_ldflags": extra_ldflags,
        "include_dirs": include_dirs, "cache_dir": cache_dir,
    }  # fmt: skip
    _origins[opened] = Origin(tuple(Path(source).resolve() for source in sources), cuda, options)
    return opened


@dataclass(frozen=True)
class Origin:
    """What a library was compiled from: the arguments of ``load``."""

    sources: tuple[Path, ...]
    cuda: bool | str
    options: Mapping[str, Any]


_origins: dict[OpLibrary, Origin] = {}


def origin(opened: Any) -> Origin | None:
    """What the library was compiled from in this process; None of one that was opened as a file."""
    return _origins.get(opened)


def load_inline(
    name: str,
    cpp: str,
    cuda: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> OpLibrary:
    """Like ``load``, from source text, as one writes it in a notebook.

    Args:
      name: namespace of the ops.
      cpp: C++ source; ``tftoolkit/op.h`` is included already.
      cuda: CUDA source, or None. It insists on a CUDA toolkit.
      cache_dir, options: as for ``load``.

    Raises what ``load`` raises: ValueError, TypeError, BuildError, LoadError, SchemaError; compile errors count lines
    as the text does.
    """
    name = _namespace(name)
    texts = {".cc": cpp} if cuda is None else {".cc": cpp, ".cu": cuda}
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()[:20]
    folder = builder.cache_folder(cache_dir) / "inline" / f"{name}-{digest}"
    if not folder.exists():
        builder.cache_folder(cache_dir, writable=True)
        folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        # The text in a file of its own: the compiler counts and shows the lines that the user wrote.
        builder.write_once(folder / f"{name}{suffix}", text)
        builder.write_once(folder / f"inline-main{suffix}", f'#include "tftoolkit/op.h"\n#include "{name}{suffix}"\n')
    sources = [folder / f"inline-main{suffix}" for suffix in texts]
    return load(name, sources, cuda=cuda is not None, cache_dir=cache_dir, **options)


def _namespace(name: str) -> str:
    """The name as TensorFlow takes it: ``my_ops`` becomes ``MyOps``."""
    camel = camel_case(name) if re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) else ""
    if not camel[:1].isupper():
        raise ValueError(f"name must be an identifier of ASCII letters, digits and _, such as 'my_ops', got {name!r}")
    return camel


_open: dict[tuple[str, str], OpLibrary] = {}
_open_lock = threading.Lock()


def open_library(name: str, path: str | os.PathLike[str]) -> OpLibrary:
    """Opens a compiled op library. The same content under the same name is opened once, wherever it lies.

    ``name`` is as for ``load``.

    Raises ValueError for a bad name, LoadError, SchemaError.
    """
    name = _namespace(name)
    try:
        key = name, hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise LoadError(f"cannot open the op library {path}: {error.strerror}") from error
    with _open_lock:
        if key not in _open:
            _open[key] = OpLibrary(name, path)
        return _open[key]


def opened() -> list[OpLibrary]:
    """The libraries opened in this process, in that order."""
    with _open_lock:
        return list(_open.values())


def builtin_recipe(folder: str | os.PathLike[str], *, cuda: bool | str = "auto") -> builder.Recipe:
    """How to build the op that lives in ``custom_ops/<folder>``: all C++ and CUDA sources in it, as by ``load``."""
    path = _PACKAGE / folder
    return builder.library_recipe(path.name, _builtin_sources(path), cuda=cuda)


def _builtin_sources(path: Path) -> list[Path]:
    return sorted(source for source in path.iterdir() if source.suffix in (".cc", ".cu"))


def has_cuda(folder: str | os.PathLike[str]) -> bool:
    """Whether the op that lives in ``custom_ops/<folder>`` has a CUDA source."""
    return any(source.suffix == ".cu" for source in _builtin_sources(_PACKAGE / folder))


def delegate_recipe() -> builder.Recipe:
    """How to build the external delegate by which TensorFlow Lite calls op libraries."""
    return builder.library_recipe(_DELEGATE, [_PACKAGE / _DELEGATE / "delegate.cc"])


def builtin_folders() -> list[str]:
    """The names of the op folders of this package."""
    return sorted({source.parent.name for source in _PACKAGE.glob("*/*.cc")} - {_DELEGATE})


def declaring_folders(op: str) -> list[str]:
    """Of these, the ones whose sources declare the op: not all have to be compiled for the sake of one."""
    declared = re.compile(rf"TK_OP\(\s*{re.escape(op)},")
    return sorted({source.parent.name for source in _PACKAGE.glob("*/*.cc") if declared.search(source.read_text())})


def load_builtin(folder: str) -> OpLibrary:
    """Builds (once) and opens the library of a built-in op; all of them share the namespace ``TfToolkit``."""
    opened = open_library("TfToolkit", builder.build(builtin_recipe(folder)))
    _origins[opened] = Origin(tuple(_builtin_sources(_PACKAGE / folder)), "auto", {})
    return opened
