"""Checkpoints that are either whole or not there.

Layout of a checkpoint folder::

    step-00001234/
        variables.index, variables.data-*   tf.train.Checkpoint(variables={name: variable})
        state.json                          everything else (pipeline position, step, seed)
        manifest.json                       names, shapes and dtypes of the variables; sizes and SHA-256 of the files

It is written under a temporary name, the manifest last, flushed to the disk and renamed. So a killed save leaves at
worst a temporary folder, which the next writer sweeps away.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.trainers.run_lock import RunLock

_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-step-\d{8,}-\d+")


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, or none can be read."""


class CheckpointMismatchError(CheckpointError):
    """An intact checkpoint belongs to other variables; ``differences`` lists how."""

    def __init__(self, path: Path, differences: list[str]) -> None:
        self.differences = differences
        lines = "\n  ".join(differences)
        super().__init__(
            f"{path} belongs to another model or trainer; nothing was loaded. Use the settings it was made with, "
            f"or another folder. Differences:\n  {lines}"
        )


class _DamagedError(Exception):
    """A checkpoint folder is incomplete or altered."""


class Restored(NamedTuple):
    """What :meth:`Checkpointer.restore` loaded, besides the variables."""

    step: int
    state: dict[str, Any]


class Checkpointer:
    """Saves to and restores from a folder of checkpoints.

    Reading needs no preparation; writing needs the folder's lock, held as a context manager::

        with Checkpointer(directory, keep=3) as checkpointer:
            checkpointer.save(step, variables, state)

    Args:
        directory: the folder; made when it is first entered.
        keep: how many of the newest checkpoints to keep.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, but is {keep}")
        self.directory = Path(directory)
        self.keep = keep
        self._lock = RunLock(self.directory)

    def __enter__(self) -> "Checkpointer":
        """Lock the folder and remove what killed saves left in it.

        Raises:
            CheckpointError: the folder can't be written.
            RunLockedError: another trainer holds it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.__enter__()
        except OSError as error:
            raise CheckpointError(f"the run folder {self.directory} can't be written: {error}") from error
        for entry in self.directory.iterdir():
            if _TEMPORARY.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.__exit__(*exc_info)

    def steps(self) -> list[int]:
        """The steps of the checkpoints present, ascending, damaged ones included."""
        if not self.directory.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}"

    def save(self, step: int, variables: Mapping[str, tf.Variable], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the oldest ones beyond ``keep``.

        Args:
            step: number of finished steps.
            variables: variables by stable name.
            state: anything that JSON can hold.

        Raises:
            CheckpointError: the folder is read-only or full, or its lock isn't held. Older checkpoints are untouched.
        """
        if not self._lock.held:
            raise CheckpointError("saving needs the folder's lock: use `with checkpointer:`")
        target = self.path(step)
        temporary = self._temporary(step)
        try:
            temporary.mkdir()
            _write_content(temporary, step, variables, state)
            if target.exists():  # an earlier save of the same step, e.g. a damaged one
                self._remove(target, step)
            temporary.rename(target)
            _sync(self.directory)
            for old in self.steps()[: -self.keep]:
                self._remove(self.path(old), old)
        except (OSError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} can't be written to {self.directory}: {error}. "
                f"Earlier checkpoints: {self.steps() or 'none'}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    def restore(self, variables: Mapping[str, tf.Variable]) -> Restored | None:
        """Load the newest intact checkpoint into ``variables``; None if there are no checkpoints at all.

        A damaged checkpoint is passed over with a warning. If the lock is held it is also renamed to ``damaged-step-…``
        so that it neither counts as one to keep nor is tried again.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged.
            CheckpointMismatchError: the checkpoint's variables aren't these; nothing was changed.
        """
        damages = []
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                manifest, state = _read_checked(path, step)
            except _DamagedError as damage:
                damages.append((path, damage))
                continue
            differences = _differences(manifest["variables"], _describe(variables))
            if differences:
                raise CheckpointMismatchError(path, differences)
            checkpoint = tf.train.Checkpoint(variables=dict(variables))
            checkpoint.read(str(path / "variables")).assert_consumed()
            self._set_aside(damages, f"continuing from the intact checkpoint of step {step}")
            return Restored(step, state)
        if damages:
            lines = "\n  ".join(f"{path.name}: {damage}" for path, damage in damages)
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged; move them away to start from nothing:\n  {lines}"
            )
        return None

    def _set_aside(self, damages: list[tuple[Path, _DamagedError]], outcome: str) -> None:
        if not damages:
            return
        reasons = "; ".join(f"{path} is damaged ({damage})" for path, damage in damages)
        warnings.warn(f"{reasons}: {outcome}", stacklevel=3)
        if self._lock.held:
            for path, _ in damages:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def _temporary(self, step: int) -> Path:
        """A free name that the sweep knows."""
        number = os.getpid()
        while (candidate := self.directory / f".tmp-step-{step:08d}-{number}").exists():
            number += 1
        return candidate

    def _remove(self, path: Path, step: int) -> None:
        """Delete a checkpoint so that a kill in between doesn't leave half of one under its name."""
        doomed = self._temporary(step)
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
            shutil.rmtree(doomed)


def _write_content(folder: Path, step: int, variables: Mapping[str, tf.Variable], state: Mapping[str, Any]) -> None:
    tf.train.Checkpoint(variables=dict(variables)).write(str(folder / "variables"))
    (folder / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False))
    content = {
        "format": _FORMAT,
        "step": step,
        "variables": _describe(variables),
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir())},
    }
    for path in folder.iterdir():
        _sync(path)
    manifest = {"content": content, "sha256": _digest(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(folder / "manifest.json")
    _sync(folder)


def _read_checked(folder: Path, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's content and the state of an intact checkpoint folder."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        content = manifest["content"]
        if manifest["sha256"] != _digest(content):
            raise _DamagedError("manifest.json was altered")
    except FileNotFoundError:
        raise _DamagedError("manifest.json is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"manifest.json can't be read: {error!r}") from None
    if content["format"] != _FORMAT:
        raise CheckpointError(f"{folder} has format {content['format']}; this version reads format {_FORMAT}")
    if content["step"] != step:
        raise _DamagedError(f"manifest.json is that of step {content['step']}")
    try:
        for name, expected in content["files"].items():
            found = _fingerprint(folder / name)
            if found != expected:
                what = "size" if found["bytes"] != expected["bytes"] else "content"
                raise _DamagedError(f"the {what} of {name} was altered")
        return content, json.loads((folder / "state.json").read_bytes())
    except OSError as error:
        raise _DamagedError(f"{Path(error.filename or folder).name}: {error.strerror}") from None


def _describe(variables: Mapping[str, tf.Variable]) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": variable.shape.as_list(), "dtype": variable.dtype.name} for name, variable in variables.items()
    }


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
