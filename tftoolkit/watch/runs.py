"""Which runs lie below a folder, and where each of them is."""

import functools
import json
import operator
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tftoolkit.trainers.checkpoints.run_lock import is_locked
from tftoolkit.watch import metrics_file

STATES = ("running", "finished", "interrupted", "diverged", "failed", "died", "unknown")
_OF_A_RUN = {"checkpoints", "tensorboard", "export"}  # folders in which there is no other run


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it.

    Attributes:
      name: the path below the folder that was searched.
      recipe: the recipe, else the kind of job; None where a program of one's own trained.
      state: one of ``STATES``: "running" (its folder is locked), "finished", "interrupted" (saved after SIGINT or
        SIGTERM), "diverged", "failed" (an error; ``note`` says which), "died" (killed, without a word), or "unknown".
      step: the latest in ``metrics.jsonl``.
      steps: how many it is to reach.
      loss: the latest of the training; None where there is none or it isn't finite.
      best: the best evaluation's ``metric``.
      metric: by which evaluations are compared.
      age: seconds since ``metrics.jsonl`` changed.
      eta: seconds until a running one has finished, at its mean speed since it began or went on.
      note: what went wrong.
    """

    name: str
    recipe: str | None = None
    state: str = "unknown"
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    best: float | None = None
    metric: str | None = None
    age: float | None = None
    eta: float | None = None
    note: str | None = None


def find(folder: Path) -> dict[str, Path]:
    """The run folders below ``folder``, itself included, by name. Links are followed, each folder is listed once.

    Raises OSError where ``folder`` itself can't be read; others that can't are passed over.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}; say where the runs lie")
    os.listdir(folder)
    here = folder.resolve()
    runs = {str(path.relative_to(folder)): path for path in _walk(folder, set())}
    return {here.name if name == "." else name: path for name, path in sorted(runs.items())}


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            inside = {entry.name: _is_folder(entry) for entry in entries}
    except OSError:
        return
    is_run = _is_run(folder, inside)
    if is_run:
        yield folder
    for name in sorted(inside):
        if inside[name] and not name.startswith(".") and not (is_run and name in _OF_A_RUN):
            yield from _walk(folder / name, seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_run(folder: Path, names: dict[str, bool]) -> bool:
    return "metrics.jsonl" in names or "status.json" in names or ("config.json" in names and bool(_config(folder)))


def look(name: str, folder: Path) -> Run:
    """What the folder says. Whatever is in it, this raises nothing."""
    config, status = _config(folder), _object(folder / "status.json")
    seen: dict[str, Any] = {"recipe": _text(config.get("recipe")) or _text(config.get("job"))}
    seen["steps"] = _count(status.get("steps")) or _count(config.get("steps"))
    try:
        seen |= _measured(folder / "metrics.jsonl", _criterion(config, status))
    except FileNotFoundError:
        pass  # nothing was logged yet
    except OSError as error:
        seen["note"] = f"metrics.jsonl: {error.strerror}"
    step, steps = seen.get("step"), seen["steps"]
    state = _state(folder, status, finished=step is not None and steps is not None and step >= steps)
    if state == "failed":
        seen["note"] = _text(status.get("error"))
    if state == "running" and step is not None and steps is not None:
        seen["eta"] = _eta(status, step, steps, seen["age"])
    return Run(name=name, state=state, **seen)


def _state(folder: Path, status: dict[str, Any], *, finished: bool) -> str:
    locked = is_locked(folder / "checkpoints")
    if locked:
        return "running"
    said = status.get("state")
    if said == "running":
        return "died" if locked is False else "unknown"
    if said in STATES:
        return str(said)
    return "finished" if finished else "unknown"  # a folder of an older version, or of another program


def _measured(path: Path, criterion: tuple[str, bool] | None) -> dict[str, Any]:
    latest = metrics_file.latest(path)
    stamp = path.stat()
    found: dict[str, Any] = {"age": max(0.0, time.time() - stamp.st_mtime)}
    if latest:
        found["step"] = max(line["step"] for line in latest.values())
    found["loss"] = latest.get("train", {}).get("loss")
    metric, higher = criterion or ("loss", False)
    best = _best(path, stamp.st_mtime_ns, stamp.st_size, metric, higher)
    return found if best is None else found | {"best": best, "metric": metric}


@functools.lru_cache(maxsize=1024)
def _best(path: Path, _changed: int, _size: int, metric: str, higher: bool) -> float | None:
    """Reads the whole file, so not again for one that has not changed."""
    line = metrics_file.best(path, metric, operator.gt if higher else operator.lt)
    return None if line is None else line[metric]


def _criterion(config: dict[str, Any], status: dict[str, Any]) -> tuple[str, bool] | None:
    """By which metric evaluations are compared, and whether higher is better: as the trainer or the recipe says."""
    best = status.get("best")
    if isinstance(best, dict) and isinstance(best.get("metric"), str):
        return best["metric"], best.get("mode") == "max"
    for group in ("at_least", "at_most"):
        bounds = config.get(group)
        if isinstance(bounds, dict) and bounds:
            return next(iter(bounds)), group == "at_least"
    return None


def _eta(status: dict[str, Any], step: int, steps: int, age: float) -> float | None:
    since, first = status.get("since"), _count(status.get("from_step")) or 0
    if not isinstance(since, int | float) or step <= first:
        return None
    seconds = time.time() - age - since  # until the step was logged
    return max(0.0, (steps - step) * seconds / (step - first) - age) if seconds > 0 else None


def _config(folder: Path) -> dict[str, Any]:
    """That of a job of ours; empty if there is none."""
    config = _object(folder / "config.json")
    return config if "job" in config else {}


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
