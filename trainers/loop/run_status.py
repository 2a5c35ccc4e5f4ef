"""What a run folder tells onlookers beside its metrics: ``status.json``."""

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tftoolkit.trainers.interrupts import TrainingTerminated
from tftoolkit.trainers.loop.best import Best
from tftoolkit.trainers.update.divergence import TrainingDivergedError

FILE = "status.json"


class RunStatus:
    """Writes ``status.json`` when a run begins or goes on, and how it was left; a context manager.

    An object of ``state`` ("running", "finished", "interrupted", "diverged" or "failed"), ``steps`` (how many to
    reach), ``from_step`` and ``since`` (where and when, in seconds since 1970, this process began), ``best`` (metric
    and mode, or null) and, after a failure, ``error``. A process that is killed leaves "running"; that nobody holds the
    folder's lock then tells the two apart (:func:`tftoolkit.trainers.checkpoints.run_lock.is_locked`). The trainer
    itself never reads the file.

    Args:
        directory: the run folder.
        steps: number of steps to reach.
        from_step: number of finished steps.
        best: what is the best evaluation, if that was said.
        writes: False on workers beside the chief.
    """

    def __init__(self, directory: Path, steps: int, from_step: int, best: Best | None, *, writes: bool) -> None:
        self._path = directory / FILE
        self._writes = writes
        self._content: dict[str, Any] = {
            "state": "running",
            "steps": steps,
            "from_step": from_step,
            "since": time.time(),
            "best": {"metric": best.metric, "mode": best.mode} if best else None,
        }

    def __enter__(self) -> "RunStatus":
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._content["state"] = "finished"
        elif isinstance(error, TrainingTerminated | KeyboardInterrupt):
            self._content["state"] = "interrupted"
        else:
            self._content["state"] = "diverged" if isinstance(error, TrainingDivergedError) else "failed"
            self._content["error"] = f"{type(error).__name__}: {error}"
        self._write()

    def _write(self) -> None:
        """In one piece. No run fails for want of it: what else the folder can't take is an error of its own."""
        if not self._writes:
            return
        temporary = self._path.with_name(f".{FILE}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(self._content, indent=1) + "\n")
            os.replace(temporary, self._path)
