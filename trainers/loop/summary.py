"""What a run came to."""

import dataclasses
from typing import Any

from tftoolkit.trainers.loop.evaluator import Evaluator
from tftoolkit.trainers.loop.metrics_log import MetricsLog
from tftoolkit.trainers.loop.run_state import RunState


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run came to."""

    steps: int
    """Finished steps, earlier runs in the same folder included."""
    seconds: float
    """Wall-clock time of training, earlier runs included as far as their checkpoints know."""
    metrics: dict[str, Any]
    """The last line of kind "train" in ``metrics.jsonl``."""
    evaluation: dict[str, Any]
    """The last line of kind "eval", empty without ``evaluate``."""
    best: dict[str, Any]
    """The best line of kind "eval", empty without ``best``."""
    already_finished: bool
    """True if there was nothing left to do."""


def summary_of(state: RunState, log: MetricsLog, evaluator: Evaluator, *, already_finished: bool) -> Summary:
    """That of a run that has ended."""
    return Summary(
        steps=state.finished_steps,
        seconds=state.seconds,
        metrics=log.last.get("train", {}),
        evaluation=log.last.get("eval", {}),
        best=evaluator.best(log),
        already_finished=already_finished,
    )
