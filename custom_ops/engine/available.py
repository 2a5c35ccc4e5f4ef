"""Which ops run where. Imports neither TensorFlow nor JAX."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tftoolkit.custom_ops.engine import builder, library, toolchain
from tftoolkit.custom_ops.engine.errors import BuildError, LoadError
from tftoolkit.custom_ops.engine.library import OpLibrary
from tftoolkit.custom_ops.engine.schema import Schema
from tftoolkit.custom_ops.engine.schema_tokens import SchemaError

HOSTS = ("TF CPU", "TF GPU", "XLA Host", "XLA CUDA", "JAX CPU", "JAX CUDA", "reference")
_WIDE = {"i64", "u64", "f64", "c128"}  # what JAX narrows to 32 bits (c128: 64) unless it is told not to
_PLAIN_OPS = ("IndexRecords", "ReadRecords", "ReadTokens")  # TensorFlow kernels in the op host, declared in no library


@dataclass(frozen=True)
class Row:
    """One op, in one host, for one dtype.

    Attributes:
      op: "TfToolkit>RmsNorm".
      host: one of ``HOSTS``; "reference" is the op's plain TensorFlow computation.
      dtype: "f32", as in the schema; of an op with several dtype variables "T=f32 Index=i32".
      reason: why the op cannot run there, with what to do about it; empty where it can.
    """

    op: str
    host: str
    dtype: str
    reason: str = ""

    @property
    def available(self) -> bool:
        return not self.reason


class Availability:
    """The rows, op by op. ``print`` shows them as a table with the reasons below it."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        notes: dict[str, int] = {}
        lines: dict[tuple[str, ...], list[str]] = {}  # op and cells → the dtypes that have them
        for (op, dtype), rows in itertools.groupby(self.rows, lambda row: (row.op, row.dtype)):
            cells = {r.host: f"no [{notes.setdefault(r.reason, len(notes) + 1)}]" if r.reason else "yes" for r in rows}
            lines.setdefault((op, *(cells[host] for host in HOSTS)), []).append(dtype)
        table = [("op", *HOSTS, "dtypes"), *((*cells, ", ".join(dtypes)) for cells, dtypes in lines.items())]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        return "\n".join([*text, "", *(f"[{number}] {reason}" for reason, number in notes.items())]).rstrip()

    __repr__ = __str__


def available(*folders: str) -> Availability:
    """Ops × hosts × dtypes on this machine, with the reason where one is missing.

    Covers the built-in ops (whose libraries are compiled first, side by side, if they were not yet) and all libraries
    opened in this process. "yes" means that there is a kernel and all that its host needs; it is not run here,
    ``opcheck`` does that.

    Args:
      folders: of built-in ops ("rms_norm"): these alone.

    Raises:
      ValueError: no built-in op has a folder of this name.
    """
    for folder in folders:
        if folder not in library.builtin_folders():
            known = ", ".join(library.builtin_folders())
            raise ValueError(f"folders: there is no built-in op {folder!r}; those there are: {known}")
    wanted = folders or library.builtin_folders()
    with contextlib.suppress(BuildError):  # each is told below, with its own error
        builder.build_all([library.builtin_recipe(folder) for folder in wanted])
    rows: list[Row] = []
    hosts = _Hosts()
    builtin: list[OpLibrary] = []
    for folder in wanted:
        try:
            opened = library.load_builtin(folder)
            importlib.import_module(f"tftoolkit.custom_ops.{folder}")  # attaches the references
        except (BuildError, LoadError, SchemaError) as error:
            reason = error.plain.partition("\n")[0]
            rows += [Row(f"TfToolkit>{folder}", host, "any", reason) for host in HOSTS]
            continue
        builtin.append(opened)
        rows += _rows(opened, hosts, has_cuda_source=any((Path(__file__).parents[1] / folder).glob("*.cu")))
    if folders:
        return Availability(rows)
    for opened in library.opened():
        if opened not in builtin:
            rows += _rows(opened, hosts, has_cuda_source=False)
    for op in _PLAIN_OPS:
        strings = "strings are for TensorFlow on the CPU only"
        reasons = {"TF CPU": hosts.tensorflow, "reference": "it has no reference"}
        rows += [Row(f"TfToolkit>{op}", host, "str", reasons.get(host, strings)) for host in HOSTS]
    return Availability(rows)


def _rows(opened: OpLibrary, hosts: _Hosts, *, has_cuda_source: bool) -> Iterator[Row]:
    for name, schema in reversed(opened.schemas.items()):  # libraries list the last declared one first
        missing = _missing_kernels(opened, name, has_cuda_source=has_cuda_source)
        op = opened.made.get(name)
        has_reference = op is not None and op.reference_function is not None
        if not opened.handlers[name] and has_reference:
            missing["CPU"] += "; its reference runs in its place"
        too_new = {host: _too_new(opened, host) for host in ("tensorflow", "jaxlib")}
        for dtype, wide in _dtypes(schema):
            narrowed = "" if not wide or hosts.jax_keeps_64_bits() else (
                "JAX makes 64-bit numbers 32-bit ones: jax.config.update('jax_enable_x64', True)"
            )  # fmt: skip
            reasons = {
                "TF CPU": missing["CPU"] or hosts.tensorflow or too_new["tensorflow"],
                "TF GPU": missing["CUDA"] or hosts.tensorflow or hosts.tensorflow_gpu or too_new["tensorflow"],
                "XLA Host": missing["CPU"] or hosts.tensorflow or hosts.xla or too_new["tensorflow"],
                "XLA CUDA": missing["CUDA"] or hosts.tensorflow or hosts.xla or hosts.tensorflow_gpu
                or too_new["tensorflow"],
                "JAX CPU": missing["CPU"] or hosts.jax or too_new["jaxlib"] or narrowed,
                "JAX CUDA": missing["CUDA"] or hosts.jax or hosts.jax_gpu or too_new["jaxlib"] or narrowed,
                "reference": hosts.tensorflow_installed if has_reference else "it has no reference",
            }  # fmt: skip
            for host in HOSTS:
                yield Row(f"{opened.name}>{name}", host, dtype, reasons[host])


def _missing_kernels(opened: OpLibrary, name: str, *, has_cuda_source: bool) -> dict[str, str]:
    """Platform → why the op has no kernel for it, empty where it has."""
    cuda = "it has no CUDA kernel"
    if not any("CUDA" in handlers for handlers in opened.handlers.values()):
        what = "" if toolchain.nvcc() else "no CUDA toolkit here. Install one (nvcc 12.8 or newer), or set CUDA_HOME"
        if not toolchain.has_gpu():
            what = "no NVIDIA GPU here. With a CUDA toolkit, tftoolkit ops build --cuda compiles it all the same"
        if has_cuda_source:
            cuda = f"not compiled: {what}"
        elif what:
            cuda += " (.cu files are left out where there is no GPU or no CUDA toolkit; cuda=True insists)"
    reasons = {"CPU": "it has no CPU kernel", "CUDA": cuda}
    return {platform: "" if platform in opened.handlers[name] else why for platform, why in reasons.items()}


def _dtypes(schema: Schema) -> Iterator[tuple[str, bool]]:
    """Each choice of dtypes, and whether 64-bit numbers are among them."""
    arguments = {argument.dtype for argument in (*schema.inputs, *schema.outputs)}
    fixed = sorted(arguments - schema.dtype_vars.keys())
    if not schema.dtype_vars:
        yield " ".join(fixed), not _WIDE.isdisjoint(fixed)
        return
    for choice in itertools.product(*schema.dtype_vars.values()):
        pairs = zip(schema.dtype_vars, choice, strict=True)
        label = choice[0] if len(choice) == 1 else " ".join(f"{name}={dtype}" for name, dtype in pairs)
        yield label, not _WIDE.isdisjoint({*fixed, *choice})


def _too_new(opened: OpLibrary, package: str) -> str:
    """Why this TensorFlow or JAX would refuse the library, whatever the op."""
    folder = toolchain.package_dir(package)
    version = toolchain.ffi_version(folder / "include") if folder else None
    if version is None or opened.ffi_version <= version:
        return ""
    texts = (".".join(map(str, each)) for each in (opened.ffi_version, version))
    return "compiled against headers of XLA FFI {}, newer than {}'s {}: set TFTOOLKIT_FFI_INCLUDE to older ones".format(
        next(texts), "TensorFlow" if package == "tensorflow" else "JAX", next(texts)
    )


class _Hosts:
    """Why a host cannot be used at all; empty where it can."""

    @functools.cached_property
    def tensorflow_installed(self) -> str:
        return _error(toolchain.check_tensorflow)

    @functools.cached_property
    def tensorflow(self) -> str:
        return self.tensorflow_installed or _error(builder.host_recipe)

    @functools.cached_property
    def xla(self) -> str:
        return toolchain.xla_obstacle() or ""

    @functools.cached_property
    def tensorflow_gpu(self) -> str:
        folder = toolchain.package_dir("tensorflow")
        info = folder / "python/platform/build_info.py" if folder else None
        if info and info.exists() and "'is_cuda_build', True" not in info.read_text():
            return "this TensorFlow was built without CUDA: pip install 'tensorflow[and-cuda]'"
        return _no_gpu()

    @functools.cached_property
    def jax(self) -> str:
        return "" if importlib.util.find_spec("jax") else "JAX is not installed: pip install 'tftoolkit[jax]'"

    @functools.cached_property
    def jax_gpu(self) -> str:
        if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
            return "JAX's CUDA plugin is not installed: pip install 'jax[cuda13]'"
        return _no_gpu()

    @staticmethod
    def jax_keeps_64_bits() -> bool:
        jax: Any = sys.modules.get("jax")
        if jax is not None:
            return bool(jax.config.jax_enable_x64)
        return os.environ.get("JAX_ENABLE_X64", "").lower() in ("1", "true", "yes", "on", "t", "y")


def _error(check: Callable[[], object]) -> str:
    try:
        check()
    except BuildError as error:
        return error.plain.partition("\n")[0]
    return ""


def _no_gpu() -> str:
    """Why there is no NVIDIA GPU that this process may use."""
    answer = toolchain.ask_driver()
    if answer is None:
        return "no NVIDIA driver on this machine (libcuda.so.1)"
    status, count = answer
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    limit = "" if hidden is None else f", CUDA_VISIBLE_DEVICES is {hidden!r}"
    return "" if count else f"the NVIDIA driver shows no GPU (CUDA error {status}{limit})"
