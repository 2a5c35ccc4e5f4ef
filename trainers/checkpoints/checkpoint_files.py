"""The files of one checkpoint folder: how they are written and how damage is found."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.errors import CodedError
from tftoolkit.trainers import faults

FORMAT = 1


class CheckpointError(CodedError, RuntimeError):
    """A checkpoint can't be written, or none can be read."""

    error_code = "checkpoint-unwritable"


class DamagedError(Exception):
    """A checkpoint folder is incomplete or altered."""


def write_content(
    folder: Path, step: int, variables: Mapping[str, tf.Variable], state: Mapping[str, Any], score: float | None
) -> None:
    """Fill an empty checkpoint folder, the manifest last, and bring it to the disk."""
    tf.train.Checkpoint(variables=dict(variables)).write(str(folder / "variables"))
    faults.passing("save")
    (folder / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor(1) as disk:  # takes them while they are read again
        syncing = [disk.submit(sync, path) for path in files]
        fingerprints = {path.name: _fingerprint(path) for path in files}
        for one in syncing:
            one.result()
    content = {
        "format": FORMAT,
        "step": step,
        "score": score,
        "variables": describe(variables),
        "files": fingerprints,
    }
    manifest = {"content": content, "sha256": _digest(content)}
    faults.passing("manifest")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    sync(folder / "manifest.json")
    sync(folder)


def read_checked(folder: Path, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's content and the state of an intact checkpoint folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        content = manifest["content"]
        if manifest["sha256"] != _digest(content):
            raise DamagedError("manifest.json was altered")
    except FileNotFoundError:
        raise DamagedError("manifest.json is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"manifest.json can't be read: {error!r}") from None
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {content['format']}; this version reads format {FORMAT}", code="checkpoint-format"
        )
    if content["step"] != step:
        raise DamagedError(f"manifest.json is that of step {content['step']}")
    try:
        for name, expected in content["files"].items():
            found = _fingerprint(folder / name)
            if found != expected:
                what = "size" if found["bytes"] != expected["bytes"] else "content"
                raise DamagedError(f"the {what} of {name} was altered")
        return content, json.loads((folder / "state.json").read_bytes())
    except OSError as error:
        raise DamagedError(f"{Path(error.filename or folder).name}: {error.strerror}") from None


def read_score(folder: Path) -> float | None:
    """The score that a checkpoint was saved with; None if it has none or can't be read."""
    try:
        return json.loads((folder / "manifest.json").read_bytes())["content"].get("score")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def describe(variables: Mapping[str, tf.Variable]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": variable.shape.as_list(), "dtype": variable.dtype.name} for name, variable in variables.items()
    }


def snapshot(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Copies in the host's memory that training can't change any more."""
    with tf.device("CPU:0"):
        return {name: tf.Variable(np.array(variable.numpy())) for name, variable in variables.items()}


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: only in the checkpoint" for name in sorted(saved.keys() - wanted.keys())]
    lines += [f"{name}: not in the checkpoint" for name in sorted(wanted.keys() - saved.keys())]
    for name in sorted(saved.keys() & wanted.keys()):
        if saved[name] != wanted[name]:
            old, new = (f"{entry['dtype']}{entry['shape']}" for entry in (saved[name], wanted[name]))
            lines.append(f"{name}: {old} in the checkpoint, {new} here")
    return lines


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
