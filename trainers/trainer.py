"""The loop around a step."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines import Pipeline
from tftoolkit.pipelines.errors import source_error
from tftoolkit.trainers.checkpointer import Checkpointer
from tftoolkit.trainers.interrupts import StopRequest, stop_requests
from tftoolkit.trainers.metrics_log import MetricsLog
from tftoolkit.trainers.progress import Progress
from tftoolkit.trainers.runner import Call, Runner
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update import Update

MAX_SKIPPED_IN_A_ROW = 20


class TrainingDivergedError(ArithmeticError):
    """The gradients weren't finite for many steps in a row; the weights are those before them."""


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
    already_finished: bool
    """True if there was nothing left to do."""


class Trainer:
    """Runs a step over a pipeline, and always ends with the same result, however often it is killed and run again.

    The order of events::

        lock the run folder, remove what killed saves left behind
        restore the newest intact checkpoint, drop the metrics of later steps
        hooks: "start"
        for each call of the runner (one step, or steps_per_call of them):
            run it
            if it made a step to log (a multiple of log_every, or the last):    write metrics, report, hooks: "log"
            if the step is to be evaluated (a multiple of evaluate_every, or the last):     evaluate, hooks: "evaluate"
            if the step is to be saved (a multiple of checkpoint_every, the last, or SIGINT or SIGTERM came):
                flush the metrics, save a checkpoint, hooks: "checkpoint"
            if SIGINT or SIGTERM came:   leave with KeyboardInterrupt
        hooks: "end"

    A run folder holds ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``. Running a finished run again does
    nothing; with a larger ``steps`` it goes on.

    Exactly the same result needs: a step that draws only from its key, and the same machine, TensorFlow and number of
    threads. TensorFlow's CPU operations are then deterministic; on a GPU call
    ``tf.config.experimental.enable_op_determinism()`` and set ``XLA_FLAGS=--xla_gpu_deterministic_ops=true`` as well.

    Args:
        step: the step; it holds model and update.
        pipeline: yields dicts of tensors.
        directory: the run folder; made if it doesn't exist.
        runner: see :class:`tftoolkit.trainers.Runner`.
        steps_per_call: the most steps that ``xla_chunk`` makes per call. The largest divisor of ``evaluate_every`` and
            ``checkpoint_every`` up to it is used, so that calls end where something is to be done.
        evaluate: function without arguments that returns a dict of numbers; called every ``evaluate_every`` steps
            (None: never in between) and after the last.
        checkpoint_every: steps between checkpoints; one is also saved after the last step.
        log_every: steps between lines in ``metrics.jsonl``; a line holds that step's own metrics, not a mean.
        keep: how many checkpoints to keep.
        seed: from which each step's key is derived.
        hooks: functions ``(event, trainer)``, called at "start", "log", "evaluate", "checkpoint" and "end".

    Attributes:
        finished_steps: number of finished steps.
        last_metrics: the latest line of each kind ("train", "eval") in ``metrics.jsonl``.
    """

    def __init__(
        self,
        step: Step,
        pipeline: Pipeline,
        directory: str | os.PathLike[str],
        *,
        runner: str = "auto",
        steps_per_call: int = 100,
        evaluate: Callable[[], Mapping[str, Any]] | None = None,
        evaluate_every: int | None = None,
        checkpoint_every: int = 1000,
        log_every: int = 100,
        keep: int = 3,
        seed: int = 0,
        hooks: Iterable[Callable[[str, "Trainer"], None]] = (),
    ) -> None:
        if not isinstance(step, Step):
            raise TypeError(f"step must be a trainers.Step, but is {type(step).__name__}")
        if evaluate_every is not None and evaluate is None:
            raise ValueError("evaluate_every needs evaluate, a function that returns a dict of numbers")
        for name, value in (
            ("evaluate_every", evaluate_every),
            ("checkpoint_every", checkpoint_every),
            ("log_every", log_every),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.step = step
        self.pipeline = pipeline
        self.directory = Path(directory)
        self.finished_steps = 0
        self.last_metrics: dict[str, dict[str, Any]] = {}
        self._evaluate = evaluate
        self._evaluate_every = evaluate_every
        self._checkpoint_every = checkpoint_every
        self._log_every = log_every
        self._seed = seed
        self._hooks = tuple(hooks)
        self._runner = Runner(
            step,
            pipeline.element_spec,
            kind=runner,
            steps_per_call=_largest_divisor(math.gcd(checkpoint_every, evaluate_every or 0), steps_per_call),
            seed=seed,
        )
        self._variables = step.named_variables()
        self._updates = [module for module in step.submodules if isinstance(module, Update)]
        self._checkpointer = Checkpointer(self.directory / "checkpoints", keep=keep)
        self._seconds = 0.0
        self._first_position = pipeline.position

    def run(self, steps: int) -> Summary:
        """Train until ``steps`` steps are finished, those of earlier runs in the same folder included.

        Raises:
            CheckpointError: the run folder can't be written, or all its checkpoints are damaged.
            CheckpointMismatchError: the run folder belongs to another model.
            ValueError: ``steps`` is out of range, or the run folder belongs to another seed or pipeline.
            RunLockedError: another trainer is using the run folder.
            TrainingDivergedError: the gradients weren't finite for 20 steps in a row.
            SourceError: the pipeline can't read its data.
            KeyboardInterrupt: SIGINT or SIGTERM came; everything is saved, and running again goes on.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but is {steps}")
        with self._checkpointer, stop_requests() as stop:
            self._restore()
            log = MetricsLog(self.directory, self.finished_steps)
            progress = Progress(steps, _batch_size(self.pipeline))
            try:
                return self._run(steps, log, progress, stop)
            finally:
                progress.close()
                log.close()

    def _run(self, steps: int, log: MetricsLog, progress: Progress, stop: StopRequest) -> Summary:
        self.last_metrics = log.last
        resumed_at = self.finished_steps
        if resumed_at >= steps:
            progress.say(f"{self.directory}: already finished at step {resumed_at}")
            return self._summary(already_finished=True)
        calls = self._runner.steps_per_call
        progress.say(
            f"{self.directory}: step {resumed_at} to {steps}, runner {self._runner.kind} ({self._runner.reason})"
            + (f", {calls} steps per call" if calls > 1 else "")
        )
        self._call_hooks("start")
        clock = time.perf_counter()
        try:
            for call in self._runner.run(self._dataset_from, resumed_at, steps):
                self.finished_steps = done = call.first + call.steps
                last = done == steps
                self._log(call, last, log, progress)
                if self._evaluate is not None and (last or _is_due(done, self._evaluate_every)):
                    log.write("eval", done, self._evaluate())
                    self._call_hooks("evaluate")
                if last or stop.name or _is_due(done, self._checkpoint_every):
                    self._seconds, clock = self._seconds + time.perf_counter() - clock, time.perf_counter()
                    self._save(log)
                if stop.name:
                    raise KeyboardInterrupt(f"{stop.name}: saved step {done} of {steps}; run again to go on")
        except tf.errors.OpError as error:
            raise source_error(error) or error from error
        self._call_hooks("end")
        return self._summary(already_finished=False)

    def _restore(self) -> None:
        restored = self._checkpointer.restore(self._variables)
        if restored is None:
            return
        if restored.state["seed"] != self._seed:
            raise ValueError(f"seed is {self._seed}, but {self.directory} was begun with {restored.state['seed']}")
        self.pipeline.restore(restored.state["pipeline"])
        self.finished_steps = restored.step
        self._first_position = self.pipeline.position - restored.step
        self._seconds = restored.state["seconds"]

    def _save(self, log: MetricsLog) -> None:
        log.flush()
        state = {
            "seed": self._seed,
            "seconds": self._seconds,
            "pipeline": self.pipeline.state(self._first_position + self.finished_steps),
        }
        self._checkpointer.save(self.finished_steps, self._variables, state)
        self._call_hooks("checkpoint")

    def _log(self, call: Call, last: bool, log: MetricsLog, progress: Progress) -> None:
        """Write the lines of those steps of ``call`` that are due. Other metrics are never read from the device."""
        finished = range(call.first + 1, call.first + call.steps + 1)
        due = [step for step in finished if step % self._log_every == 0 or (last and step == finished[-1])]
        if not due:
            return
        self._check_finite()
        skipped = sum(int(update.skipped) for update in self._updates)
        values = {name: value.numpy().reshape(-1) for name, value in call.metrics.items()}
        for step in due:
            log.write("train", step, {name: value[step - finished[0]] for name, value in values.items()})
        log.write_rates(finished[-1], progress.report(finished[-1], log.last["train"], skipped))
        self._call_hooks("log")

    def _check_finite(self) -> None:
        in_a_row = max((int(update.skipped_in_a_row) for update in self._updates), default=0)
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingDivergedError(
                f"step {self.finished_steps}: the gradients weren't finite in the last {in_a_row} steps, which were "
                "skipped. Lower the learning rate, clip the gradients, or look for NaN in the data"
            )

    def _dataset_from(self, step: int) -> tf.data.Dataset:
        return self.pipeline.dataset(start=self._first_position + step)

    def _call_hooks(self, event: str) -> None:
        for hook in self._hooks:
            hook(event, self)

    def _summary(self, *, already_finished: bool) -> Summary:
        return Summary(
            steps=self.finished_steps,
            seconds=self._seconds,
            metrics=self.last_metrics.get("train", {}),
            evaluation=self.last_metrics.get("eval", {}),
            already_finished=already_finished,
        )


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _largest_divisor(number: int, limit: int) -> int:
    return next((size for size in range(limit, 0, -1) if number % size == 0), limit)


def _batch_size(pipeline: Pipeline) -> int | None:
    sizes = {spec.shape[0] if spec.shape.rank else None for spec in pipeline.element_spec.values()}
    return sizes.pop() if len(sizes) == 1 else None
