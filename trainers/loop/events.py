"""When something is to be done: every so many steps, seconds or epochs."""

import dataclasses
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from tftoolkit.trainers.step import Step

EVENTS = ("start", "log", "evaluate", "checkpoint", "end")


class Run(Protocol):
    """What a hook sees of the trainer."""

    step: Step
    directory: Path

    @property
    def finished_steps(self) -> int:
        """Number of finished steps."""

    @property
    def last_metrics(self) -> dict[str, dict[str, Any]]:
        """The latest line of each kind ("train", "eval", "rollback") in ``metrics.jsonl``."""

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder."""

    @property
    def summary_writer(self) -> Any:
        """TensorBoard's, of the run folder."""

    @property
    def graph(self) -> Any:
        """The graph of one step, or None where the step runs eagerly."""


Hook = Callable[[Any], None]  # of a Run, in full a Trainer


@dataclasses.dataclass(frozen=True)
class Every:
    """A period; made by :func:`every`. Exactly one of the three is set.

    Args:
        steps: finished steps between two times.
        seconds: time between two times.
        epochs: of the pipeline, or a part of one, between two times.
    """

    steps: int | None = None
    seconds: float | None = None
    epochs: float | None = None

    @property
    def repeatable(self) -> bool:
        """Whether an interrupted and resumed run does it at the same steps as an undisturbed one."""
        return self.seconds is None

    def __str__(self) -> str:
        return next(f"every({field}={value})" for field, value in dataclasses.asdict(self).items() if value is not None)


def every(*, steps: int | None = None, seconds: float | None = None, epochs: float | None = None) -> Every:
    """``every(steps=100)``, ``every(seconds=30)`` or ``every(epochs=0.5)``.

    Steps and epochs are counted from the beginning of training, so that they don't depend on interruptions. Seconds
    count from the last time in this process; what they call must not change the result.

    Raises:
        TypeError: not exactly one of the three, or not a number.
        ValueError: not a positive number.
    """
    given = {
        name: value for name, value in (("steps", steps), ("seconds", seconds), ("epochs", epochs)) if value is not None
    }
    if len(given) != 1:
        raise TypeError(f"every takes one of steps, seconds and epochs, but got {given or 'none of them'}")
    ((name, value),) = given.items()
    if isinstance(value, bool) or not isinstance(value, int if name == "steps" else (int, float)):
        raise TypeError(f"every: {name} must be {'an integer' if name == 'steps' else 'a number'}, but is {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"every: {name} must be above 0, but is {value}")
    return Every(steps, seconds, epochs)


class Alarm:
    """Says when an :class:`Every` is due, in a run whose step and pipeline position are told to it.

    Args:
        period: how often; None: never.
        batches_per_epoch: of the pipeline; may be None if the period isn't in epochs.
    """

    def __init__(self, period: Every | None, batches_per_epoch: int | None) -> None:
        self._seconds = period.seconds if period else None
        self._batches: Fraction | None = None
        if period and period.epochs:
            if batches_per_epoch is None:
                raise ValueError(f"{period} needs a pipeline that knows its batches_per_epoch")
            self._batches = Fraction(period.epochs).limit_denominator(1_000_000) * batches_per_epoch
        self._steps = period.steps if period else None
        self.next_step: float = math.inf
        self._next_time = math.inf

    def set(self, step: int, position: int) -> None:
        """Look for the next time after ``step`` finished steps, with the pipeline at batch ``position``."""
        self.next_step = self._step_after(step, position)
        if self._seconds:
            self._next_time = time.monotonic() + self._seconds

    def due(self, step: int) -> bool:
        return step >= self.next_step or (self._next_time < math.inf and time.monotonic() >= self._next_time)

    def was_due(self, step: int, position: int) -> bool:
        """Whether ``step`` is one after which it is due in every run; in seconds it never is."""
        return self._step_after(step - 1, position - 1) == step

    def _step_after(self, step: int, position: int) -> float:
        if self._steps:
            return (step // self._steps + 1) * self._steps
        if self._batches:
            return step + math.ceil((position // self._batches + 1) * self._batches) - position
        return math.inf
