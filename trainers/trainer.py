"""The loop around a step."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers import faults, heartbeat
from tftoolkit.trainers.asynchronous import AsynchronousRunner
from tftoolkit.trainers.best import Best
from tftoolkit.trainers.checkpoint_files import snapshot
from tftoolkit.trainers.checkpointer import Checkpointer, Restored
from tftoolkit.trainers.divergence import DivergenceWatch, TrainingDivergedError
from tftoolkit.trainers.events import Alarm, Every, Hook, period_of, sorted_hooks
from tftoolkit.trainers.feed import Feed
from tftoolkit.trainers.interrupts import StopRequest, TrainingTerminated, stop_requests
from tftoolkit.trainers.metrics_log import MetricsLog
from tftoolkit.trainers.progress import Progress
from tftoolkit.trainers.replicas import Workers, is_asynchronous, strategy_of
from tftoolkit.trainers.runner import Call, Runner
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update import Update


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


class Trainer:
    """Runs a step over a pipeline, and always ends with the same result, however often it is killed and run again.

    The order of events::

        lock the run folder, remove what killed saves left behind
        restore the newest intact checkpoint, drop the metrics of later steps
        event "start"
        evaluate now if that was due when the run was interrupted
        until the last step is finished or the evaluations no longer get better:
            call the runner: one step, or several, but never past the next step at which something is due
            if the updates were skipped too often in a row:
                go back to the last good checkpoint and leave out the batches since
                continue
            write the metrics of those steps that are to be logged                                 event "log"
            if evaluating is due, or it is the last step:  evaluate, write it                      event "evaluate"
            if saving is due, it is the best evaluation, the last step, or SIGINT or SIGTERM came:
                bring the metrics to the disk, save a checkpoint                                   event "checkpoint"
            call the hooks that are due
            if SIGINT or SIGTERM came:   leave
        event "end"

    A run folder holds ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``. Running a finished run again does
    nothing; with a larger ``steps`` it goes on. SIGTERM ends the running call of the runner (about a second) or
    evaluation, saves, and raises :class:`TrainingTerminated`, which ends the process with exit code 75; SIGINT raises
    KeyboardInterrupt.

    Exactly the same result needs: a step that draws only from its key, hooks that only look, and the same machine,
    TensorFlow and number of threads. TensorFlow's CPU operations are then deterministic; on a GPU call
    ``tf.config.experimental.enable_op_determinism()`` and set ``XLA_FLAGS=--xla_gpu_deterministic_ops=true`` as well.

    Where the step's variables were made within the scope of a ``tf.distribute`` strategy
    (:func:`tftoolkit.trainers.distributed_strategy`), the step runs once per replica on that replica's rows of each
    batch. Several workers share the run folder; only the first, the chief, writes it, and they all save and stop after
    the same step, whichever of them a signal reaches. Hooks run on every worker (``trainer.is_chief`` tells which one
    this is), those of event "checkpoint" on the chief; ``sinks`` on the chief. ``docs/distributed.md`` says more.

    With parameter servers the chief alone runs the loop; each step runs on one of the workers, beside others, on the
    weights that it finds. Nothing is exactly repeatable then.

    Rolling back is deterministic, too: a checkpoint counts as good if it was saved on schedule (not by the clock or a
    signal) when the latest update wasn't skipped. All batches from there to the one that was the last straw are left
    out, as in Chowdhery et al. 2022, section 5.1.

    Args:
        step: the step; it holds model and update.
        pipeline: yields dicts of tensors.
        directory: the run folder; made if it doesn't exist.
        runner: see :class:`tftoolkit.trainers.Runner`.
        steps_per_call: see there.
        evaluate: function without arguments that returns a dict of numbers; called after the last step and at
            ``evaluate_every``, on every worker; the chief's numbers count.
        evaluate_every: :func:`every` so many steps or epochs (a number means steps); None: only after the last step.
        checkpoint_every: likewise, seconds too; a checkpoint is also saved after the last step.
        log_every: steps or epochs between lines in ``metrics.jsonl``; a line holds that step's own metrics, not a mean.
        best: keep the best checkpoint, and perhaps stop early.
        keep: how many of the newest checkpoints to keep.
        keep_every: keep also the checkpoints of steps that are multiples of this.
        async_checkpoints: write checkpoints in a thread while training goes on; takes a copy of all variables.
        max_skipped_in_a_row: how many updates may be skipped in a row before the trainer rolls back.
        max_rollbacks: how often it may, before it gives up.
        peak_flops: what the device can do per second at most, for the utilization (MFU) on the console.
        seed: from which each step's key is derived.
        hooks: pairs of when and a function of the trainer; when is :func:`every` … or one of the events "start",
            "log", "evaluate", "checkpoint" and "end".
        sinks: functions that get each line of ``metrics.jsonl`` as a dict when it is written.

    Attributes:
        finished_steps: number of finished steps.
        last_metrics: the latest line of each kind ("train", "eval", "rollback") in ``metrics.jsonl``.
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
        evaluate_every: Every | int | None = None,
        checkpoint_every: Every | int = 1000,
        log_every: Every | int = 100,
        best: Best | None = None,
        keep: int = 3,
        keep_every: int | None = None,
        async_checkpoints: bool = False,
        max_skipped_in_a_row: int = 20,
        max_rollbacks: int = 3,
        peak_flops: float | None = None,
        seed: int = 0,
        hooks: Iterable[tuple[Every | str, Hook]] = (),
        sinks: Iterable[Callable[[dict[str, Any]], None]] = (),
    ) -> None:
        if not isinstance(step, Step):
            raise TypeError(f"step must be a trainers.Step, but is {type(step).__name__}")
        if evaluate is None and (evaluate_every is not None or best is not None):
            raise ValueError("evaluate_every and best need evaluate, a function that returns a dict of numbers")
        for name, number, least in (
            ("max_skipped_in_a_row", max_skipped_in_a_row, 1),
            ("max_rollbacks", max_rollbacks, 0),
        ):
            if number < least:
                raise ValueError(f"{name} must be at least {least}, but is {number}")
        self.step = step
        self.pipeline = pipeline
        self.directory = Path(directory)
        self.finished_steps = 0
        self._evaluate = evaluate
        self._best = best
        self._max_rollbacks = max_rollbacks
        self._peak_flops = peak_flops
        self._seed = seed
        self._sinks = tuple(sinks)
        batches = pipeline.batches_per_epoch
        self._log_alarm = Alarm(period_of("log_every", log_every, repeatable=True), batches)
        self._evaluate_alarm = Alarm(period_of("evaluate_every", evaluate_every, repeatable=True), batches)
        checkpoints = period_of("checkpoint_every", checkpoint_every)
        self._saves_on_schedule = checkpoints is not None and checkpoints.repeatable
        self._checkpoint_alarm = Alarm(checkpoints, batches)
        self._event_hooks, self._hook_alarms = sorted_hooks(hooks, batches)
        self._alarms = [self._evaluate_alarm, self._checkpoint_alarm, *(alarm for alarm, _ in self._hook_alarms)]
        self._updates = [module for module in step.submodules if isinstance(module, Update)]
        self._variables = step.named_variables()
        strategy = strategy_of(self._variables)
        self._workers = Workers(strategy)
        with strategy.scope() if strategy else contextlib.nullcontext():
            self._watch = DivergenceWatch(self._updates, max_skipped_in_a_row)
        self._asynchronous = strategy is not None and is_asynchronous(strategy)
        self._runner = self._make_runner(strategy, runner, steps_per_call)
        self._checkpointer = Checkpointer(
            self.directory / "checkpoints",
            keep=keep,
            keep_best=1 if best else 0,
            keep_every=keep_every,
            asynchronous=async_checkpoints,
        )
        self._seconds = 0.0
        self._position = pipeline.position
        self._good_step: int | None = None  # the checkpoint to roll back to
        self._rollbacks: list[dict[str, int]] = []
        self._log: MetricsLog | None = None

    def _make_runner(
        self, strategy: tf.distribute.Strategy | None, kind: str, steps_per_call: int
    ) -> Runner | AsynchronousRunner:
        options: dict[str, Any] = {
            "kind": kind,
            "steps_per_call": steps_per_call,
            "seed": self._seed,
            "watch": self._watch,
        }
        if strategy is None:
            return Runner(self.step, self.pipeline.element_spec, **options)
        if self._asynchronous:
            return AsynchronousRunner(self.step, self.pipeline.element_spec, strategy, **options)
        workers = self._workers
        shares = (self.pipeline.shard(replica, workers.replica_count) for replica in workers.replicas)
        return Runner(self.step, tuple(share.element_spec for share in shares), workers=workers, **options)

    def run(self, steps: int) -> Summary:
        """Train until ``steps`` steps are finished, those of earlier runs in the same folder included.

        Raises:
            CheckpointError: the run folder can't be written, or all its checkpoints are damaged.
            CheckpointMismatchError: the run folder belongs to another model.
            ValueError: ``steps`` is out of range, the run folder belongs to another seed or pipeline, or the data ends.
            RunLockedError: another trainer is using the run folder.
            TrainingDivergedError: too many updates were skipped in a row, and rolling back didn't help.
            SourceError: the pipeline can't read its data.
            TrainingTerminated: SIGTERM came; everything is saved, and running again goes on.
            KeyboardInterrupt: SIGINT came; likewise.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but is {steps}")
        with contextlib.ExitStack() as closing:
            closing.callback(heartbeat.pause)
            if self.is_chief:
                closing.enter_context(self._checkpointer)
            stop = closing.enter_context(stop_requests())
            self._restore()
            log = closing.enter_context(contextlib.closing(self._open_log()))
            progress = Progress(
                steps,
                _batch_size(self.pipeline),
                self._runner.flops_per_step,
                peak_flops=self._peak_flops,
                visible=self.is_chief,
            )
            closing.callback(progress.close)
            already_finished = not self._loop(steps, log, progress, stop)
            self._checkpointer.wait()
            self._report_completed()
            if not already_finished:
                self._call_hooks("end")
            return self._summary(log, already_finished=already_finished)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder: the only one, or the first of several workers."""
        return self._workers.is_chief

    @property
    def last_metrics(self) -> dict[str, dict[str, Any]]:
        return self._log.last if self._log else {}

    @property
    def graph(self) -> tf.Graph | None:
        """That of one step; None if steps run eagerly."""
        return self._runner.graph

    @property
    def summary_writer(self) -> tf.summary.SummaryWriter:
        """Of the TensorBoard file, for hooks.

        Raises:
            RuntimeError: no run has begun yet.
        """
        if self._log is None:
            raise RuntimeError("there is no TensorBoard file before run() begins")
        return self._log.writer

    @property
    def best_checkpoint(self) -> int | None:
        """The step of the checkpoint whose evaluation was the best; see :meth:`load_best`."""
        return self._checkpointer.best_step()

    def load_best(self) -> int:
        """Set the step's variables to those of the best checkpoint, for evaluation or export; returns its step.

        Raises:
            ValueError: there is none: ``best`` wasn't given, or nothing was evaluated yet.
            CheckpointError: it is damaged.
        """
        step = self.best_checkpoint
        if step is None:
            raise ValueError(f"{self.directory} has no best checkpoint: give best=Best(metric) and run")
        self._read_checkpoint(step)
        return step

    def _loop(self, steps: int, log: MetricsLog, progress: Progress, stop: StopRequest) -> bool:
        """Returns whether there was anything to do."""
        evaluation_missing = self._evaluation_missing(steps, log)
        if self._is_over(steps, log) and not evaluation_missing:
            progress.say(f"{self.directory}: already finished at step {self.finished_steps}")
            return False
        runner = self._runner
        progress.say(
            f"{self.directory}: step {self.finished_steps} to {steps}, runner {runner.kind} ({runner.reason})"
            + (f", up to {runner.steps_per_call} steps per call" if runner.steps_per_call > 1 else "")
            + ("; the first call compiles" if runner.kind != "eager" else "")
        )
        self._clock = time.perf_counter()
        self._call_hooks("start")
        if evaluation_missing:
            scheduled = self._saves_on_schedule and self._was_due(self._checkpoint_alarm)
            self._save(log, good=self._evaluate_now(log) or scheduled)
        self._set_alarms()
        feed = runner.feed(self.pipeline, self._position)
        while not self._is_over(steps, log):
            limit = min(steps, *(alarm.next_step for alarm in self._alarms)) - self.finished_steps
            call = runner.call(feed, self.finished_steps, int(limit))
            faults.passing("step")
            heartbeat.beat()
            self.finished_steps += call.steps
            self._position += call.steps
            last = self.finished_steps == steps
            stopped_by, due = self._stop_and_due(stop)
            if not (last or stopped_by or due or self.finished_steps >= self._log_alarm.next_step):
                continue
            if (diverged_at := self._watch.step) is not None:
                feed = self._roll_back(diverged_at, log, progress)
                continue
            self._write_metrics(call, last, log, progress, feed.seconds_waited)
            improved = False
            if (last or self._evaluate_alarm in due) and not stopped_by:
                improved = self._evaluate_now(log)
                # Not asked later: a signal that comes during the save is heeded after the next call.
                stopped_by, _ = self._stop_and_due(stop)
            if last or stopped_by or improved or self._checkpoint_alarm in due or self._is_over(steps, log):
                self._save(log, good=improved or (self._checkpoint_alarm in due and self._saves_on_schedule))
            for alarm, hook in self._hook_alarms:
                if alarm in due:
                    hook(self)
            for alarm in due:
                alarm.set(self.finished_steps, self._position)
            self._report_completed()
            if stopped_by:
                self._leave(stopped_by, steps, progress)
        return True

    def _is_over(self, steps: int, log: MetricsLog) -> bool:
        return self.finished_steps >= steps or (self._best is not None and self._best.exhausted(log.evaluations))

    def _stop_and_due(self, stop: StopRequest) -> tuple[str | None, set[Alarm]]:
        """The signal that came, if any, and the alarms that are due; with several workers: on any of them."""
        signals = ("SIGTERM", "SIGINT")
        due = [alarm.due(self.finished_steps) for alarm in self._alarms]
        agreed = self._workers.any([*(stop.name == name for name in signals), *due])
        came = [name for name, flag in zip(signals, agreed, strict=False) if flag]
        return came[0] if came else None, {alarm for alarm, flag in zip(self._alarms, agreed[2:], strict=True) if flag}

    def _set_alarms(self) -> None:
        for alarm in (self._log_alarm, *self._alarms):
            alarm.set(self.finished_steps, self._position)

    def _was_due(self, alarm: Alarm) -> bool:
        """Whether the alarm was due after the latest step."""
        alarm.set(self.finished_steps - 1, self._position - 1)
        return alarm.next_step == self.finished_steps

    def _evaluation_missing(self, steps: int, log: MetricsLog) -> bool:
        """Whether the run was interrupted when it should have evaluated."""
        if self._evaluate is None or self.finished_steps == 0:
            return False
        if any(entry["step"] == self.finished_steps for entry in log.evaluations[-1:]):
            return False
        return self.finished_steps == steps or self._was_due(self._evaluate_alarm)

    def _restore(self) -> None:
        restored = self._restore_checkpoint()
        self._watch.reset()
        if restored is None:
            return
        state = restored.state
        if state["seed"] != self._seed:
            raise ValueError(f"seed is {self._seed}, but {self.directory} was begun with {state['seed']}")
        self.pipeline.restore(state["pipeline"])
        self._position = self.pipeline.position
        self.finished_steps = restored.step
        self._seconds = state["seconds"]
        self._good_step = state["good_step"]
        self._rollbacks = state["rollbacks"]

    def _restore_checkpoint(self, step: int | None = None) -> Restored | None:
        """On all workers the one that the chief takes: others might look while it puts a damaged one aside."""
        restored = self._read_checkpoint(step) if self.is_chief else None
        step = self._workers.from_chief(restored.step if restored else None)
        if self.is_chief or step is None:
            return restored
        return self._read_checkpoint(step)

    def _read_checkpoint(self, step: int | None) -> Restored | None:
        if not self._asynchronous:
            return self._checkpointer.restore(self._variables, step)
        # TensorFlow would let each parameter server open the files, which perhaps only the chief can see.
        copies = snapshot(self._variables)
        restored = self._checkpointer.restore(copies, step)
        if restored is not None:
            for name, variable in self._variables.items():
                variable.assign(copies[name])
        return restored

    def _open_log(self) -> MetricsLog:
        self._log = MetricsLog(
            self.directory, self.finished_steps, self._sinks if self.is_chief else (), writes=self.is_chief
        )
        return self._log

    def _evaluate_now(self, log: MetricsLog) -> bool:
        """Returns whether the evaluation is the best so far."""
        if self._evaluate is None:
            return False
        metrics = self._evaluate()
        heartbeat.beat()
        faults.passing("evaluate")
        if self.is_chief:
            log.write("eval", self.finished_steps, metrics)
        written = self._workers.from_chief(log.last.get("eval"))  # not each its own: they decide what comes next
        if not self.is_chief:
            values = {name: value for name, value in written.items() if name not in ("kind", "step")}
            log.write("eval", self.finished_steps, {k: math.nan if v is None else v for k, v in values.items()})
        self._call_hooks("evaluate")
        return self._best is not None and self._best.of(log.evaluations) is log.evaluations[-1]

    def _save(self, log: MetricsLog, *, good: bool) -> None:
        """``good``: an undisturbed run would save here, too, so that rolling back to it is repeatable."""
        log.flush()
        score = None
        if self._best is not None and log.evaluations and log.evaluations[-1]["step"] == self.finished_steps:
            score = self._best.finite_score(log.evaluations[-1])
        if good and self._watch.calm:
            self._good_step = self.finished_steps
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now
        state = {
            "seed": self._seed,
            "seconds": self._seconds,
            "pipeline": self.pipeline.state(self._position),
            "good_step": self._good_step,
            "rollbacks": self._rollbacks,
        }
        protect = () if self._good_step is None else (self._good_step,)
        # Some variables are means over all workers (statistics of tf_keras), which they all must read. And parameter
        # servers would write theirs themselves, wherever they are.
        copied = self._workers.count > 1 or self._asynchronous
        variables = snapshot(self._variables) if copied else self._variables
        if self.is_chief:
            self._checkpointer.save(self.finished_steps, variables, state, score=score, protect=protect)

    def _write_metrics(
        self, call: Call, last: bool, log: MetricsLog, progress: Progress, seconds_waited: float
    ) -> None:
        """Write the lines of those steps of ``call`` that are due. Other metrics are never read from the device."""
        due = []
        while self._log_alarm.next_step <= self.finished_steps:
            due.append(int(self._log_alarm.next_step))
            self._log_alarm.set(due[-1], self._position - (self.finished_steps - due[-1]))
        if last and due[-1:] != [self.finished_steps]:
            due.append(self.finished_steps)
        if not due:
            return
        values = call.values()
        for step in due:
            log.write("train", step, {name: value[step - call.first - 1] for name, value in values.items()})
        skipped = sum(int(update.skipped.numpy()) for update in self._updates)
        rates = progress.report(self.finished_steps, log.last["train"], skipped, seconds_waited, log.last.get("eval"))
        log.write_rates(self.finished_steps, rates)
        self._call_hooks("log")

    def _roll_back(self, diverged_at: int, log: MetricsLog, progress: Progress) -> Feed:
        """Continue from the last good checkpoint with the batches after that of step ``diverged_at``."""
        target = self._good_step
        if target is None or len(self._rollbacks) >= self._max_rollbacks:
            reason = (
                "there is no good checkpoint yet" if target is None else f"rolled back {len(self._rollbacks)} times"
            )
            raise TrainingDivergedError(
                f"step {diverged_at}: the updates were skipped too often in a row, and {reason}. Lower the learning "
                "rate, clip the gradients, or look for NaN in the data"
            )
        end = self._position - (self.finished_steps - diverged_at)
        restored = self._restore_checkpoint(target)
        assert restored is not None
        if self.is_chief:
            self._checkpointer.discard_after(target)
        self.pipeline.restore(restored.state["pipeline"])
        skipped = {"first_batch": self.pipeline.position, "batches": end - self.pipeline.position}
        self._rollbacks.append({"step": target, "diverged_at": diverged_at, **skipped})
        self.finished_steps, self._position = target, end
        self._watch.reset()
        self._set_alarms()
        log.rewind(target)
        for rollback in self._rollbacks:
            if (
                rollback["step"] == target
            ):  # named after the first step that follows, which drops it when that is dropped
                log.write("rollback", target + 1, {name: rollback[name] for name in ("diverged_at", *skipped)})
        progress.say(f"diverged at step {diverged_at}: back to step {target}, without {skipped['batches']} batches")
        return self._runner.feed(self.pipeline, end)

    def _leave(self, signal_name: str, steps: int, progress: Progress) -> None:
        self._checkpointer.wait()
        message = f"{signal_name}: saved step {self.finished_steps} of {steps}; run again to go on"
        progress.say(message)
        raise TrainingTerminated(message) if signal_name == "SIGTERM" else KeyboardInterrupt(message)

    def _report_completed(self) -> None:
        for step in self._checkpointer.completed():
            heartbeat.beat(saved_step=step)
            self._call_hooks("checkpoint")

    def _call_hooks(self, event: str) -> None:
        for hook in self._event_hooks[event]:
            hook(self)

    def _summary(self, log: MetricsLog, *, already_finished: bool) -> Summary:
        best = self._best.of(log.evaluations) if self._best else None
        return Summary(
            steps=self.finished_steps,
            seconds=self._seconds,
            metrics=log.last.get("train", {}),
            evaluation=log.last.get("eval", {}),
            best=dict(best or {}),
            already_finished=already_finished,
        )


def _batch_size(pipeline: Pipeline) -> int | None:
    sizes = {spec.shape[0] if spec.shape.rank else None for spec in pipeline.element_spec.values()}
    return sizes.pop() if len(sizes) == 1 else None
