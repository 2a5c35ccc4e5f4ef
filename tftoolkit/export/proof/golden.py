"""The proof beside a file: what it was proven on, so that any machine with the file's runtime can repeat it.

``NAME.golden.npz`` holds inputs and TensorFlow's outputs, ``NAME.proof.json`` the allowed differences, the SHA-256 of
the file and of the arrays, and everything that was measured. Neither needs TensorFlow to be read.
"""

import functools
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tftoolkit.export.proof.parity import GoldenCase
from tftoolkit.export.report import ExportError, Row, plain
from tftoolkit.export.runtimes.delegate import folder_of
from tftoolkit.export.runtimes.made_up import NOT_FINITE
from tftoolkit.export.runtimes.runtime import Arrays, Signature, Tensor
from tftoolkit.export.runtimes.samples import Case

ARRAYS, PROOF = ".golden.npz", ".proof.json"  # appended to the file's whole name
VERSION = 3
# In version 1 no case was judged by what is infinite; before 3 each call had arrays of its own, listed by name alone.
READ = (1, 2, VERSION)
MAX_REAL_BYTES = 8_000_000  # of real examples: a proof beside each file must stay small


def beside(path: Path) -> tuple[Path, Path]:
    """Where the arrays and the proof of a file lie."""
    return path.with_name(path.name + ARRAYS), path.with_name(path.name + PROOF)


def save(
    built: Path, folder: Path, cases: Sequence[GoldenCase], signatures: Mapping[str, Signature], row: Row
) -> tuple[Path, Path]:
    """Writes arrays and proof of ``built`` into ``folder``; returns their paths."""
    arrays = _Arrays()
    listed = []
    for position, item in enumerate(_stored(cases)):
        sides = {"inputs": item.case.inputs, "outputs": item.outputs}
        listed.append(
            {
                "kind": item.case.kind,
                "signature": item.case.signature,
                **{side: arrays.put(f"{position}/{side}", values) for side, values in sides.items()},
                "bounds": item.bounds,
                "asks": item.asks,
            }
        )
    array_file, proof_file = folder / f"result{ARRAYS}", folder / f"result{PROOF}"
    np.savez_compressed(array_file, **arrays.stored)
    proof = {
        "version": VERSION,
        "file_sha256": checksum(built),
        "golden_sha256": checksum(array_file),
        **({"delegate_sha256": checksum(folder_of(built))} if folder_of(built).is_dir() else {}),
        "signatures": described(signatures),
        "cases": listed,
        "measured": row.to_dict(),
    }
    proof_file.write_text(json.dumps(plain(proof), indent=1, allow_nan=False) + "\n")
    return array_file, proof_file


def load(path: Path) -> tuple[list[GoldenCase], dict[str, Any]] | None:
    """The golden cases and the proof beside a file; None where there is none.

    Raises ExportError where the file, the arrays or the proof are not those that were written together.
    """
    array_file, proof_file = beside(path)
    if not proof_file.is_file():
        return None
    try:
        proof = json.loads(proof_file.read_text())
        if proof["version"] not in READ:
            raise ExportError("golden", f"{proof_file.name} is of version {proof['version']}; this reads {READ}")
        _same_checksum(path, proof["file_sha256"], "it is another file than the one that was proven")
        _same_checksum(array_file, proof["golden_sha256"], "the stored inputs and outputs were changed")
        if folder_of(path).is_dir():
            _same_checksum(folder_of(path), proof["delegate_sha256"], "it is another delegate")
        with np.load(array_file) as arrays:
            read = functools.cache(lambda key: _restored(arrays[key]))
            return [_case(position, item, read) for position, item in enumerate(proof["cases"])], proof
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ExportError(
            "golden", f"{proof_file.name} is damaged ({type(error).__name__}: {error}); export the model again"
        ) from error


def described(signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """Names, shapes, dtypes and their order, as ``proof["signatures"]`` holds them."""
    return {
        name: {side: [_tensor(tensor) for tensor in getattr(signature, side)] for side in ("inputs", "outputs")}
        for name, signature in signatures.items()
    }


def checksum(path: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and contents of all files in it."""
    digest = hashlib.sha256()
    if not path.is_dir():
        digest.update(path.read_bytes())
        return digest.hexdigest()
    for item in sorted(path.rglob("*")):
        if item.is_file():
            inner = hashlib.sha256(item.read_bytes()).hexdigest()
            digest.update(f"{inner}  {item.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def _same_checksum(path: Path, expected: str, otherwise: str) -> None:
    found = checksum(path)
    if found != expected:
        raise ExportError(
            "golden", f"{path.name} has SHA-256 {found[:16]}…, the proof says {expected[:16]}…: {otherwise}"
        )


def _stored(cases: Sequence[GoldenCase]) -> list[GoldenCase]:
    """All made-up cases that have a bound or must be finite, and real ones as far as the space goes."""
    room: dict[str, int] = {}
    found = []
    for item in cases:
        kind, signature = item.case.kind, item.case.signature
        if kind in NOT_FINITE and all(bound is None for bound in item.bounds.values()):  # says nothing to be repeated
            continue
        size = sum(array.nbytes for array in (*item.case.inputs.values(), *item.outputs.values()))
        if kind == "real" and signature in room and room[signature] < size:
            continue
        if kind == "real":
            room[signature] = room.get(signature, MAX_REAL_BYTES) - size
        found.append(item)
    return found


class _Arrays:
    """Arrays by name, equal ones once: calls that differ in one input have the others in common, a cache of MBs say."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] = {}
        self._known: dict[bytes, str] = {}

    def put(self, prefix: str, values: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Where each array is stored."""
        return {name: self._place(f"{prefix}/{name}", _storable(array)) for name, array in values.items()}

    def _place(self, wanted: str, array: np.ndarray) -> str:
        digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode() + array.tobytes()).digest()
        place = self._known.setdefault(digest, wanted)
        if place == wanted:
            self.stored[place] = array
        return place


def _storable(array: np.ndarray) -> np.ndarray:
    """Text as fixed-width bytes: pickled objects would let a proof run code."""
    return np.asarray(array, "S") if array.dtype == object else array


def _case(position: int, item: Mapping[str, Any], read: Callable[[str], np.ndarray]) -> GoldenCase:
    def side(which: str) -> Arrays:
        listed = item[which]
        places = listed if isinstance(listed, dict) else {name: f"{position}/{which}/{name}" for name in listed}
        return {name: read(place) for name, place in places.items()}

    inputs, outputs = side("inputs"), side("outputs")
    return GoldenCase(
        Case(item["kind"], item["signature"], inputs), outputs, _numbers(item["bounds"]), item.get("asks", False)
    )


def _restored(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "S":
        return array.astype(object)
    if array.dtype == np.dtype("V2"):  # how numpy stores bfloat16
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    return array


def _numbers(bounds: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: None if value is None else float(value) for name, value in bounds.items()}


def _tensor(tensor: Tensor) -> dict[str, Any]:
    shape = None if tensor.shape is None else list(tensor.shape)
    return {"name": tensor.name, "dtype": tensor.dtype.name, "shape": shape, "stored": tensor.stored}
