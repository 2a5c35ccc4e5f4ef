"""Weights in and out of flat files: name -> array, as npz or safetensors.

Unlike a checkpoint, such a file knows nothing of training; it is for passing weights on, and for starting from them
(transfer learning).
"""

import dataclasses
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.naming import matching, named_variables

# What zipfile and NumPy raise on bytes that were altered, besides ValueError and OSError.
_DAMAGE = (EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of each name; names are the model's unless said otherwise."""

    loaded: tuple[str, ...]
    """Read from the file."""
    differing: dict[str, str]
    """In both, with another shape or a dtype that doesn't hold the file's numbers -> how they differ."""
    missing: tuple[str, ...]
    """Not in the file."""
    unused: tuple[str, ...]
    """Only in the file (its names, renamed)."""

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} variables loaded"]
        lines += [f"differs: {name}: {how}" for name, how in self.differing.items()]
        lines += [f"missing in the file: {name}" for name in self.missing]
        lines += [f"not in the model: {name}" for name in self.unused]
        return "\n  ".join(lines)


def save_weights(path: str | os.PathLike[str], model: Any) -> None:
    """Write all variables of ``model`` (tf.Module or Keras) under their stable names.

    The file appears at once or not at all.

    Args:
        path: ends with ".npz" or ".safetensors".

    Raises:
        ValueError: another ending; bfloat16 in an npz file, which can't hold it.
        ImportError: safetensors isn't installed.
    """
    path = Path(path)
    write = {".npz": _write_npz, ".safetensors": _write_safetensors}[_ending(path)]
    arrays = {name: variable.numpy() for name, variable in named_variables(model).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary, arrays)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_weights(
    path: str | os.PathLike[str], model: Any, *, rename: Mapping[str, str] | None = None, partial: bool = False
) -> LoadReport:
    """Read variables of ``model`` (tf.Module or Keras) from a file by name.

    Args:
        path: ends with ".npz" or ".safetensors".
        rename: pattern of names in the file -> name in the model, before anything is compared. ``*`` stands for
            anything, in order: ``{"encoder/*": "backbone/*"}``.
        partial: load what fits and report the rest. Otherwise everything must fit, or nothing is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or has another ending; something doesn't fit (the text is the report); with
            ``partial``, nothing fits; a rename pattern matches nothing, or two names become one.
        ImportError: safetensors isn't installed.
    """
    path = Path(path)
    ending = _ending(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        arrays = dict(_read_npz(path) if ending == ".npz" else _read_safetensors(path))
    except (*_DAMAGE, ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    arrays = _renamed(arrays, rename or {})
    variables = named_variables(model)
    common = [name for name in variables if name in arrays]
    differing = {name: how for name in common if (how := _difference(arrays[name], variables[name]))}
    report = LoadReport(
        loaded=tuple(name for name in common if name not in differing),
        differing=differing,
        missing=tuple(sorted(variables.keys() - arrays.keys())),
        unused=tuple(sorted(arrays.keys() - variables.keys())),
    )
    if not partial and (report.differing or report.missing or report.unused):
        raise ValueError(f"{path} doesn't fit the model (partial=True loads what fits): {report}")
    if not report.loaded:
        raise ValueError(f"nothing in {path} fits the model: {report}")
    for name in report.loaded:
        variables[name].assign(arrays[name].astype(variables[name].dtype.as_numpy_dtype))
    return report


def _ending(path: Path) -> str:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"a file of weights must end with .npz or .safetensors, but is {path.name!r}")
    return path.suffix


def _difference(array: np.ndarray, variable: tf.Variable) -> str:
    """Empty if the variable can hold the array's numbers."""
    dtype = variable.dtype.as_numpy_dtype
    if array.shape == tuple(variable.shape) and np.can_cast(array.dtype, dtype, "safe"):
        return ""
    return f"{array.dtype}{list(array.shape)} in the file, {variable.dtype.name}{variable.shape.as_list()} here"


def _renamed(arrays: dict[str, np.ndarray], rename: Mapping[str, str]) -> dict[str, np.ndarray]:
    names = {name: name for name in arrays}
    for pattern, matched in matching(rename, list(arrays), "rename").items():
        expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))
        for name in matched:
            if names[name] != name:
                raise ValueError(f"rename: {name!r} matches more than one pattern")
            parts = iter(expression.fullmatch(name).groups())  # type: ignore[union-attr]
            names[name] = re.sub(r"\*", lambda _, parts=parts: next(parts), rename[pattern])  # type: ignore[misc]
    if len(set(names.values())) < len(names):
        twice = sorted({new for new in names.values() if list(names.values()).count(new) > 1})
        raise ValueError(f"rename: several names in the file become {', '.join(twice)}")
    return {names[name]: array for name, array in arrays.items()}


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez, which can't store a variable named "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype.kind == "V":
                raise ValueError(f"{name} is {array.dtype}, which npz can't hold: use a .safetensors file")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_npz(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as archive:
        yield from archive.items()


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # It would store the memory of another layout as it lies.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    _safetensors().numpy.save_file(contiguous, path)


def _read_safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    safetensors = _safetensors()
    try:
        yield from safetensors.numpy.load_file(path).items()
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("files of this kind need safetensors: pip install 'tftoolkit[safetensors]'") from error
    return safetensors
