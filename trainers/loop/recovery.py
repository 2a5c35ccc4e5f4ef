"""Which checkpoint to go back to when training has diverged, and how often that was done."""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import Workers, copies_of
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update.divergence import DivergenceWatch, TrainingDivergedError
from tftoolkit.trainers.update.update import Update


class Recovery:
    """Watches the updates of a step and keeps the books of its rollbacks.

    Args:
        step: the step.
        workers: those of the strategy that the step's variables belong to, if any.
        max_skipped_in_a_row: how many updates may be skipped in a row.
        max_rollbacks: how often to go back.

    Attributes:
        watch: to be told of each step by the runner.
    """

    def __init__(self, step: Step, workers: Workers, *, max_skipped_in_a_row: int, max_rollbacks: int) -> None:
        for name, number, least in (
            ("max_skipped_in_a_row", max_skipped_in_a_row, 1),
            ("max_rollbacks", max_rollbacks, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, but is {number}")
        updates = [module for module in step.submodules if isinstance(module, Update)]
        with workers.strategy.scope() if workers.strategy else contextlib.nullcontext():
            self.watch = DivergenceWatch(updates, max_skipped_in_a_row)
        self._workers = workers
        self._finite = {name: v for name, v in step.named_variables().items() if v.dtype.is_floating}
        for name in _not_finite(self._finite):
            del self._finite[name]
        self._max_rollbacks = max_rollbacks
        self._good_step: int | None = None
        self._rollbacks: list[dict[str, int]] = []

    def note_saving(self, step: int) -> None:
        """A checkpoint of ``step`` is being saved, as in every run, so that going back to it is repeatable.

        It is a good one if no update skipped the latest step, and all variables that began with finite numbers hold
        finite numbers. Others may use infinities or NaN as marks.
        """
        if not self.watch.calm:
            return
        names = _not_finite(self._finite)
        if self._workers.any([bool(names)])[0]:
            warnings.warn(
                f"step {step}: no update was skipped, but NaN or infinities are in {names or 'another worker'}; "
                "this checkpoint won't be gone back to",
                stacklevel=2,
            )
        else:
            self._good_step = step

    @property
    def protected_steps(self) -> tuple[int, ...]:
        """Those whose checkpoints must stay."""
        return () if self._good_step is None else (self._good_step,)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"good_step": self._good_step, "rollbacks": self._rollbacks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self._good_step = state["good_step"]
        self._rollbacks = state["rollbacks"]

    def target(self, diverged_at: int) -> int:
        """The step to go back to.

        Raises:
            TrainingDivergedError: there is no good checkpoint, or that was done too often.
        """
        if self._good_step is None:
            reason = "there is no good checkpoint yet"
        elif len(self._rollbacks) >= self._max_rollbacks:
            reason = f"rolled back {len(self._rollbacks)} times"
        else:
            return self._good_step
        raise TrainingDivergedError(
            f"step {diverged_at}: the updates were skipped too often in a row, and {reason}. Lower the learning "
            "rate, clip the gradients, or look for NaN in the data"
        )

    def note_rollback(self, *, target: int, diverged_at: int, first_batch: int, batches: int) -> None:
        """The run is back at step ``target``, and that many batches are left out."""
        self._rollbacks.append(
            {"step": target, "diverged_at": diverged_at, "first_batch": first_batch, "batches": batches}
        )
        self.watch.reset()

    def lines(self) -> list[dict[str, int]]:
        """What ``metrics.jsonl`` says about the rollbacks to the latest one's target."""
        return [
            {name: value for name, value in rollback.items() if name != "step"}
            for rollback in self._rollbacks
            if rollback["step"] == self._rollbacks[-1]["step"]
        ]


def _not_finite(variables: Mapping[str, tf.Variable]) -> list[str]:
    """The names of those that hold a NaN or an infinity on this worker. Waits for the device."""
    return [
        name
        for name, variable in variables.items()
        if not all(tf.reduce_all(tf.math.is_finite(copy.read_value())) for copy in copies_of(variable))
    ]
