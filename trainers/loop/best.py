"""Which evaluation was the best, and whether it is time to give up hope for a better one."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Best:
    """Keeps the best checkpoint by a metric of the evaluation, and stops training when it no longer gets better.

    It looks at nothing but the evaluations in ``metrics.jsonl``, so an interrupted run decides as an undisturbed one.

    Args:
        metric: a name that ``evaluate`` returns.
        mode: "max" if higher is better, "min" if lower is.
        patience: stop after this many evaluations in a row without a new best; None: never.
        min_delta: how much better a new best must be to count for ``patience``.

    Raises ValueError where an argument is out of range; its methods, where an evaluation lacks the metric.
    """

    metric: str
    mode: str = "max"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', but is {self.mode!r}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or None, but is {self.patience}")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"min_delta must be a finite number that isn't negative, but is {self.min_delta}")

    def score(self, evaluation: Mapping[str, Any]) -> float:
        """The metric so that higher is better; minus infinity if it isn't finite (null in ``metrics.jsonl``).

        Raises:
            ValueError: the evaluation lacks the metric.
        """
        if self.metric not in evaluation:
            names = sorted(evaluation.keys() - {"kind", "step"})
            raise ValueError(f"Best(metric={self.metric!r}): evaluate returns no such metric, but {names}")
        value = evaluation[self.metric]
        if value is None:
            return -math.inf
        return float(value) if self.mode == "max" else -float(value)

    def finite_score(self, evaluation: Mapping[str, Any]) -> float | None:
        """:meth:`score`, or None instead of minus infinity."""
        score = self.score(evaluation)
        return None if score == -math.inf else score

    def of(self, evaluations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The best evaluation, the first of equals; None if there is none that is finite."""
        best = max(evaluations, key=self.score, default=None)
        return None if best is None or self.score(best) == -math.inf else best

    def exhausted(self, evaluations: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the latest ``patience`` evaluations brought nothing better."""
        if self.patience is None:
            return False
        reference, waited = -math.inf, 0
        for evaluation in evaluations:
            score = self.score(evaluation)
            if score > reference + self.min_delta:
                reference, waited = score, 0
            else:
                waited += 1
            if waited >= self.patience:
                return True
        return False
