"""Flat files of weights, name → array: npz, safetensors, and safetensors in several files with an index."""

import json
import shlex
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

INDEX = ".safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What zipfile, NumPy and json raise on bytes that were altered, besides ValueError and OSError.
_DAMAGE = (EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, or of those that an index names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, a pickle, or has another ending.
        ImportError: safetensors isn't installed.
    """
    if path.suffix in _PICKLES:
        raise ValueError(
            f"{path} is a pickle, which may run any code when it is read. Where PyTorch is:\n{_command(path)}"
        )
    check_ending(path, INDEX)
    if not path.is_file():
        index = path.with_name(path.stem + INDEX)
        also = f", but {index.name}: the weights are in several files, give that one" if index.is_file() else ""
        raise FileNotFoundError(f"there is no file {path}{also}")
    try:
        if path.name.endswith(INDEX):
            return _read_sharded(path)
        return _read_npz(path) if path.suffix == ".npz" else _read_safetensors(path)
    except (*_DAMAGE, ValueError, OSError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def write(path: Path, arrays: Mapping[str, np.ndarray], ending: str, metadata: Mapping[str, str]) -> None:
    """The metadata only of safetensors.

    Raises:
        ValueError: bfloat16 in an npz file, which can't hold it.
        ImportError: safetensors isn't installed.
    """
    if ending == ".npz":
        _write_npz(path, arrays)
    else:
        # It would store the memory of another layout as it lies.
        contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        _safetensors().numpy.save_file(contiguous, path, dict(metadata) or None)


def check_ending(path: Path, *others: str) -> str:
    """The ending; ValueError if it is none of ours."""
    if not path.name.endswith((".npz", ".safetensors", *others)):
        raise ValueError(f"a file of weights must end with .npz or .safetensors, but is {path.name!r}")
    return path.suffix


def _command(path: Path) -> str:
    """What turns a pickle of tensors into a safetensors file. Tensors that share memory are stored twice."""
    source, target = (json.dumps(str(one)) for one in (path, path.with_suffix(".safetensors")))
    tensors = f'torch.load({source}, map_location="cpu", weights_only=True)'
    code = (
        "import torch; from safetensors.torch import save_file; save_file("
        f"{{k: v.contiguous().clone() for k, v in {tensors}.items()}}, {target})"
    )
    return f"  python -c {shlex.quote(code)}"


def _read_sharded(path: Path) -> dict[str, np.ndarray]:
    index = json.loads(path.read_text())
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError('it must hold {"weight_map": {name of a tensor: name of a file, …}}')
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        shard = path.with_name(file) if Path(file).name == file else None
        if shard is None or not shard.is_file():
            raise ValueError(f"it names {file!r}, which is not beside it")
        found = _read_safetensors(shard)
        wanted = {name for name, place in places.items() if place == file}
        if lost := sorted(wanted - found.keys()):
            raise ValueError(f"{file} does not hold {', '.join(lost[:10])}{', …' if lost[10:] else ''}")
        arrays |= {name: found[name] for name in wanted}
    return arrays


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    # Not np.savez, which can't store a variable named "file".
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if array.dtype.kind == "V":
                raise ValueError(f"{name} is {array.dtype}, which npz can't hold: use a .safetensors file")
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive.items())


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors()
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path.name}: {error}; it is damaged or not whole: fetch or write it anew") from error
    except AttributeError as error:  # numpy.float8_e4m3fn, for instance
        raise ValueError(f"{path.name} holds a type of numbers that NumPy doesn't have: {error}") from error


def _safetensors() -> ModuleType:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("files of this kind need safetensors: pip install 'tftoolkit[safetensors]'") from error
    return safetensors
