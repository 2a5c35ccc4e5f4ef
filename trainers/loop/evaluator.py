"""Evaluating, and what the evaluations say about the run."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tftoolkit.trainers import faults
from tftoolkit.trainers.distribution import heartbeat
from tftoolkit.trainers.distribution.replicas import Workers
from tftoolkit.trainers.loop.best import Best
from tftoolkit.trainers.loop.metrics_log import MetricsLog


class Evaluator:
    """Calls the user's ``evaluate`` on all workers, writes down what the chief got, and judges it by ``best``.

    Args:
        evaluate: see :class:`tftoolkit.trainers.Trainer`; None: there are no evaluations.
        best: see there.
        workers: all of them must evaluate at once.

    Attributes:
        criterion: ``best``.
    """

    def __init__(self, evaluate: Callable[[], Mapping[str, Any]] | None, best: Best | None, workers: Workers) -> None:
        self._function = evaluate
        self.criterion = best
        self._workers = workers

    @property
    def evaluates(self) -> bool:
        return self._function is not None

    def missing(self, step: int, log: MetricsLog) -> bool:
        """Whether there is no evaluation of ``step``, though there could be one."""
        return self.evaluates and step > 0 and log.evaluation_of(step) is None

    def evaluate(self, step: int, log: MetricsLog) -> None:
        """Evaluate after ``step`` finished steps."""
        assert self._function is not None
        metrics = self._function()
        if not isinstance(metrics, Mapping):
            raise TypeError(f"evaluate must return a dict of numbers, but returned {type(metrics).__name__}")
        heartbeat.beat()
        faults.passing("evaluate")
        if self._workers.is_chief:
            log.write("eval", step, metrics)
        written = self._workers.from_chief(log.last.get("eval"))  # not each its own: they decide what comes next
        if not self._workers.is_chief:
            values = {name: value for name, value in written.items() if name not in ("kind", "step")}
            log.write("eval", step, {k: math.nan if v is None else v for k, v in values.items()})

    def improved(self, log: MetricsLog) -> bool:
        """Whether the latest evaluation is the best so far."""
        return self.criterion is not None and self.criterion.of(log.evaluations) is log.evaluations[-1]

    def exhausted(self, log: MetricsLog) -> bool:
        """Whether the evaluations no longer get better."""
        return self.criterion is not None and self.criterion.exhausted(log.evaluations)

    def score(self, step: int, log: MetricsLog) -> float | None:
        """How good the run is after ``step`` steps, higher is better; None if that isn't known."""
        evaluation = log.evaluation_of(step)
        return None if self.criterion is None or evaluation is None else self.criterion.finite_score(evaluation)

    def best(self, log: MetricsLog) -> dict[str, Any]:
        """The best evaluation; empty if there is none."""
        return dict((self.criterion.of(log.evaluations) if self.criterion else None) or {})
