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
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.trainers.checkpoints.checkpoint_files import (
    CheckpointError,
    DamagedError,
    describe,
    differences,
    read_checked,
    read_score,
    snapshot,
    sync,
    write_content,
)
from tftoolkit.trainers.checkpoints.run_lock import RunLock

_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-step-\d{8,}-\d+")


class CheckpointMismatchError(CheckpointError):
    """An intact checkpoint belongs to other variables; ``differences`` lists how."""

    error_code = "checkpoint-mismatch"

    def __init__(self, path: Path, differences: list[str]) -> None:
        self.differences = differences
        lines = "\n  ".join(differences)
        super().__init__(
            f"{path} belongs to another model or trainer; nothing was loaded. Use the settings it was made with, "
            f"or another folder. Differences:\n  {lines}"
        )


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
        keep_best: how many of those with the highest score to keep besides.
        keep_every: keep also the checkpoints of steps that are multiples of this.
        asynchronous: let :meth:`save` copy the variables and write them in a thread. An error then comes with the next
            ``save`` or ``wait``, or when the folder is left.

    Raises ValueError where one of the numbers is too small.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 3,
        keep_best: int = 0,
        keep_every: int | None = None,
        asynchronous: bool = False,
    ) -> None:
        for name, value, least in (
            ("keep", keep, 1),
            ("keep_best", keep_best, 0),
            ("keep_every", 1 if keep_every is None else keep_every, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}")
        self.directory = Path(directory)
        self.keep = keep
        self.keep_best = keep_best
        self.keep_every = keep_every
        self.asynchronous = asynchronous
        self._lock = RunLock(self.directory)
        self._writing: _Writing | None = None
        self._completed: list[int] = []

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

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # another error is on its way, which mustn't be hidden
        finally:
            self._lock.__exit__(kind, *exc_info)

    def steps(self) -> list[int]:
        """The steps of the checkpoints present, ascending, damaged ones included."""
        if not self.directory.is_dir():
            return []
        matches = (_NAME.fullmatch(entry.name) for entry in self.directory.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint at this step, whether it is there or not."""
        return self.directory / f"step-{step:08d}"

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest score (the first of equals), None if none has a score."""
        scored = self._by_score()
        return scored[0] if scored else None

    def save(
        self,
        step: int,
        variables: Mapping[str, tf.Variable],
        state: Mapping[str, Any],
        *,
        score: float | None = None,
        protect: Collection[int] = (),
    ) -> Path:
        """Write a checkpoint, then remove those that aren't to be kept.

        Args:
            step: number of finished steps.
            variables: variables by stable name.
            state: anything that JSON can hold.
            score: how good it is, higher is better; for ``keep_best``.
            protect: steps whose checkpoints must stay in any case.

        Returns:
            The checkpoint's folder; if ``asynchronous`` it isn't there yet.

        Raises:
            CheckpointError: the folder is read-only or full, or its lock isn't held; if ``asynchronous``, so it was for
                the save before this one. Older checkpoints are untouched.
        """
        if not self._lock.held:
            raise CheckpointError(
                "saving needs the folder's lock: use `with checkpointer:`", code="checkpoint-needs-lock"
            )
        self.wait()
        kept = frozenset(protect)
        if self.asynchronous:
            copies = snapshot(variables)
            self._writing = _Writing(step, lambda: self._write(step, copies, state, score, kept))
        else:
            self._write(step, variables, state, score, kept)
            self._completed.append(step)
        return self.path(step)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            CheckpointError: what was being written couldn't be.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.join()
            self._completed.append(writing.step)

    def completed(self) -> list[int]:
        """The steps whose checkpoints were completed since the last call. Doesn't wait.

        Raises:
            CheckpointError: what was being written couldn't be.
        """
        if self._writing is not None and self._writing.done:
            self.wait()
        steps, self._completed = self._completed, []
        return steps

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        self.wait()
        for later in self.steps():
            if later > step:
                self._remove(self.path(later), later)

    def _write(
        self,
        step: int,
        variables: Mapping[str, tf.Variable],
        state: Mapping[str, Any],
        score: float | None,
        protect: frozenset[int],
    ) -> None:
        target = self.path(step)
        temporary = self._temporary(step)
        try:
            temporary.mkdir()
            write_content(temporary, step, variables, state, score)
            if target.exists():  # an earlier save of the same step, e.g. a damaged one
                self._remove(target, step)
            temporary.rename(target)
            sync(self.directory)
            for old in set(self.steps()) - self._kept() - protect:
                self._remove(self.path(old), old)
        except (OSError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"the checkpoint of step {step} can't be written to {self.directory}: {error}. "
                f"Earlier checkpoints: {self.steps() or 'none'}"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _kept(self) -> set[int]:
        steps = self.steps()
        every = {step for step in steps if self.keep_every and step % self.keep_every == 0}
        best = self._by_score()[: self.keep_best] if self.keep_best else []
        return {*steps[-self.keep :], *every, *best}

    def _by_score(self) -> list[int]:
        """The steps that have a score, best first."""
        scores = {step: read_score(self.path(step)) for step in self.steps()}
        scored = [(-score, step) for step, score in scores.items() if score is not None]
        return [step for _, step in sorted(scored)]

    def restore(self, variables: Mapping[str, tf.Variable], step: int | None = None) -> Restored | None:
        """Load a checkpoint into ``variables``: that of ``step``, or by default the newest intact one.

        Returns None if there are no checkpoints at all.

        A damaged checkpoint is passed over with a warning. If the lock is held it is also renamed to ``damaged-step-…``
        so that it neither counts as one to keep nor is tried again.

        Raises:
            CheckpointError: there are checkpoints, but all are damaged; or that of ``step`` is absent or damaged.
            CheckpointMismatchError: the checkpoint's variables aren't these; nothing was changed.
        """
        self.wait()
        if step is not None and step not in self.steps():
            raise CheckpointError(
                f"{self.directory} has no checkpoint of step {step}, but of {self.steps() or 'none'}",
                code="checkpoint-missing",
            )
        damages = []
        for candidate in reversed(self.steps()) if step is None else [step]:
            path = self.path(candidate)
            try:
                manifest, state = read_checked(path, candidate)
            except DamagedError as damage:
                damages.append((path, damage))
                continue
            different = differences(manifest["variables"], describe(variables))
            if different:
                raise CheckpointMismatchError(path, different)
            checkpoint = tf.train.Checkpoint(variables=dict(variables))
            checkpoint.read(str(path / "variables")).assert_consumed()
            self._set_aside(damages, f"continuing from the intact checkpoint of step {candidate}")
            return Restored(candidate, state)
        if damages:
            lines = "\n  ".join(f"{path.name}: {damage}" for path, damage in damages)
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged; move them away to start from nothing:\n  {lines}",
                code="checkpoint-damaged",
            )
        return None

    def _set_aside(self, damages: list[tuple[Path, DamagedError]], outcome: str) -> None:
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


class _Writing:
    """A save in a thread of its own; the interpreter doesn't exit before it is done."""

    def __init__(self, step: int, write: Callable[[], None]) -> None:
        self.step = step
        self._write = write
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {step}")
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._error = error
