"""The loop around a step."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers import faults
from tftoolkit.trainers.checkpoints.checkpointer import Checkpointer
from tftoolkit.trainers.checkpoints.shared_checkpoints import SharedCheckpoints
from tftoolkit.trainers.distribution import heartbeat
from tftoolkit.trainers.distribution.replicas import Workers, strategy_of
from tftoolkit.trainers.interrupts import StopRequest, TrainingTerminated, stop_requests
from tftoolkit.trainers.loop.best import Best
from tftoolkit.trainers.loop.evaluator import Evaluator
from tftoolkit.trainers.loop.events import Every, Hook
from tftoolkit.trainers.loop.record import Record
from tftoolkit.trainers.loop.recovery import Recovery
from tftoolkit.trainers.loop.run_state import RunState
from tftoolkit.trainers.loop.run_status import RunStatus
from tftoolkit.trainers.loop.schedule import Schedule
from tftoolkit.trainers.loop.summary import Summary, summary_of
from tftoolkit.trainers.runners.checks import check_trained
from tftoolkit.trainers.runners.choice import runner_for
from tftoolkit.trainers.runners.feed import Feed
from tftoolkit.trainers.runners.runner import Call
from tftoolkit.trainers.step import Step


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
            call the hooks that are due
            if saving is due, it is the best evaluation, the last step, or SIGINT or SIGTERM came:
                bring the metrics to the disk, save a checkpoint                                   event "checkpoint"
            if SIGINT or SIGTERM came:   leave
        event "end"

    A run folder holds ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/`` and, for onlookers, ``status.json``.
    Running a finished run again does nothing; with a larger ``steps`` it goes on. SIGTERM ends the running call of the
    runner (about a second) or evaluation, saves, and raises :class:`TrainingTerminated`, which ends the process with
    exit code 75; SIGINT raises KeyboardInterrupt.

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

    Raises TypeError without a step and a pipeline; ValueError where something is out of range, or batches are missing.
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
        if not isinstance(pipeline, Pipeline):  # a tf.data.Dataset cannot go on where it was
            raise TypeError(f"pipeline must be a pipelines.Pipeline, but is {type(pipeline).__name__}")
        if evaluate is None and (evaluate_every is not None or best is not None):
            raise ValueError("evaluate_every and best need evaluate, a function that returns a dict of numbers")
        self.step = step
        self.pipeline = pipeline
        self.directory = Path(directory)
        variables = step.named_variables()
        self._workers = Workers(strategy_of(variables))
        self._schedule = Schedule(
            self._workers,
            pipeline.batches_per_epoch,
            log_every=log_every,
            evaluate_every=evaluate_every,
            checkpoint_every=checkpoint_every,
            hooks=hooks,
        )
        self._evaluator = Evaluator(evaluate, best, self._workers)
        self._recovery = Recovery(
            step, self._workers, max_skipped_in_a_row=max_skipped_in_a_row, max_rollbacks=max_rollbacks
        )
        checkpointer = Checkpointer(
            self.directory / "checkpoints",
            keep=keep,
            keep_best=1 if best else 0,
            keep_every=keep_every,
            asynchronous=async_checkpoints,
        )
        self._checkpoints = SharedCheckpoints(checkpointer, variables, self._workers)
        self._state = RunState(self.directory, seed, pipeline, self._checkpoints, self._recovery)
        options = {"kind": runner, "steps_per_call": steps_per_call, "seed": seed, "watch": self._recovery.watch}
        self._runner = runner_for(step, pipeline, self._workers, **options)
        self._peak_flops = peak_flops
        self._sinks = tuple(sinks)
        self._record: Record | None = None

    def run(self, steps: int) -> Summary:
        """Train until ``steps`` steps are finished, those of earlier runs in the same folder included.

        Raises:
            CheckpointError: the run folder can't be written, or all its checkpoints are damaged.
            CheckpointMismatchError: the run folder belongs to another model.
            ValueError: ``steps`` is out of range, the run folder belongs to another seed or pipeline, the data ends, or
                layers were frozen or unfrozen since the step's ``Update`` was made.
            RunLockedError: another trainer is using the run folder.
            TrainingDivergedError: too many updates were skipped in a row, and rolling back didn't help.
            SourceError: the pipeline can't read its data.
            TrainingTerminated: SIGTERM came; everything is saved, and running again goes on.
            KeyboardInterrupt: SIGINT came; likewise.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but is {steps}")
        check_trained(self.step)  # it may have changed since it was traced
        with contextlib.ExitStack() as closing:
            closing.callback(heartbeat.pause)
            closing.enter_context(self._checkpoints)
            stop = closing.enter_context(stop_requests())
            self._state.restore()
            criterion = self._evaluator.criterion
            closing.enter_context(
                RunStatus(self.directory, steps, self.finished_steps, criterion, writes=self.is_chief)
            )
            record = self._record = closing.enter_context(contextlib.closing(self._new_record(steps)))
            already_finished = not self._loop(steps, record, stop)
            self._checkpoints.wait()
            self._report_completed()
            if not already_finished:
                self._call_hooks("end")
            return summary_of(self._state, record.log, self._evaluator, already_finished=already_finished)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run folder: the only one, or the first of several workers."""
        return self._workers.is_chief

    @property
    def finished_steps(self) -> int:
        return self._state.finished_steps

    @property
    def last_metrics(self) -> dict[str, dict[str, Any]]:
        return self._record.log.last if self._record else {}

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
        if self._record is None:
            raise RuntimeError("there is no TensorBoard file before run() begins")
        return self._record.log.writer

    @property
    def best_checkpoint(self) -> int | None:
        """The step of the checkpoint whose evaluation was the best; see :meth:`load_best`."""
        return self._checkpoints.best_step()

    def load_best(self) -> int:
        """Set the step's variables to those of the best checkpoint, for evaluation or export; returns its step.

        Raises:
            ValueError: there is none: ``best`` wasn't given, or nothing was evaluated yet.
            CheckpointError: it is damaged.
        """
        step = self.best_checkpoint
        if step is None:
            raise ValueError(f"{self.directory} has no best checkpoint: give best=Best(metric) and run")
        self._checkpoints.read(step)
        return step

    def _loop(self, steps: int, record: Record, stop: StopRequest) -> bool:
        """Returns whether there was anything to do."""
        evaluation_missing = self._evaluation_missing(steps, record)
        if self._is_over(steps, record) and not evaluation_missing:
            record.say(f"{self.directory}: already finished at step {self.finished_steps}")
            return False
        state, schedule, runner = self._state, self._schedule, self._runner
        record.say(
            f"{self.directory}: step {self.finished_steps} to {steps}, runner {runner.kind} ({runner.reason})"
            + (f", up to {runner.steps_per_call} steps per call" if runner.steps_per_call > 1 else "")
            + ("; the first call compiles" if runner.kind != "eager" else "")
        )
        state.start_clock()
        self._call_hooks("start")
        if evaluation_missing:
            scheduled = schedule.saving_was_due(state.finished_steps, state.position)
            self._save(record, repeatable=self._evaluate(record) or scheduled)
        schedule.set(state.finished_steps, state.position)
        feed = runner.feed(self.pipeline, state.position)
        while not self._is_over(steps, record):
            call = runner.call(feed, state.finished_steps, schedule.steps_until_due(state.finished_steps, steps))
            faults.passing("step")
            heartbeat.beat()
            state.advance(call.steps)
            last = state.finished_steps == steps
            due = schedule.due(state.finished_steps, stop)
            if not (last or due.anything):
                continue
            if (diverged_at := self._recovery.watch.step) is not None:
                feed = self._roll_back(diverged_at, record)
                continue
            self._write_metrics(call, record, feed.seconds_waited, last=last)
            improved, signal = False, due.signal
            if (last or due.evaluate) and not signal:
                improved = self._evaluate(record)
                # Not asked later: a signal that comes during the save is heeded after the next call.
                signal = schedule.due(state.finished_steps, stop).signal
            for hook in due.hooks:  # before saving: what they change belongs to this step's checkpoint
                hook(self)
            if last or signal or improved or due.save or self._is_over(steps, record):
                self._save(record, repeatable=improved or due.save_repeatable)
            schedule.set_again(due, state.finished_steps, state.position)
            self._report_completed()
            if signal:
                self._leave(signal, steps, record)
        return True

    def _new_record(self, steps: int) -> Record:
        return Record(
            self.directory,
            self.finished_steps,
            steps,
            self.pipeline,
            self._runner,
            peak_flops=self._peak_flops,
            sinks=self._sinks,
            visible=self.is_chief,
        )

    def _is_over(self, steps: int, record: Record) -> bool:
        return self.finished_steps >= steps or self._evaluator.exhausted(record.log)

    def _evaluation_missing(self, steps: int, record: Record) -> bool:
        """Whether the run was interrupted when it should have evaluated."""
        step, position = self.finished_steps, self._state.position
        was_due = step == steps or self._schedule.evaluating_was_due(step, position)
        return was_due and self._evaluator.missing(step, record.log)

    def _evaluate(self, record: Record) -> bool:
        """Returns whether the evaluation is the best so far."""
        if not self._evaluator.evaluates:
            return False
        self._evaluator.evaluate(self.finished_steps, record.log)
        self._call_hooks("evaluate")
        return self._evaluator.improved(record.log)

    def _save(self, record: Record, *, repeatable: bool) -> None:
        """``repeatable``: an undisturbed run would save here, too."""
        record.log.flush()
        self._state.save(score=self._evaluator.score(self.finished_steps, record.log), repeatable=repeatable)

    def _write_metrics(self, call: Call, record: Record, seconds_waited: float, *, last: bool) -> None:
        """Write the lines of those steps of ``call`` that are due. Other metrics are never read from the device."""
        step = self.finished_steps
        lines = self._schedule.take_lines(step, self._state.position, last=last)
        if lines:
            record.write_steps(step, call, lines, self._recovery.watch.skipped, seconds_waited)
            self._call_hooks("log")

    def _roll_back(self, diverged_at: int, record: Record) -> Feed:
        """Continue from the last good checkpoint with the batches after that of step ``diverged_at``."""
        state = self._state
        left_out = state.roll_back(diverged_at, record.log)
        self._schedule.set(state.finished_steps, state.position)
        record.say(f"diverged at step {diverged_at}: back to step {state.finished_steps}, without {left_out} batches")
        return self._runner.feed(self.pipeline, state.position)

    def _leave(self, signal_name: str, steps: int, record: Record) -> None:
        self._checkpoints.wait()
        message = f"{signal_name}: saved step {self.finished_steps} of {steps}; run again to go on"
        record.say(message)
        raise TrainingTerminated(message) if signal_name == "SIGTERM" else KeyboardInterrupt(message)

    def _report_completed(self) -> None:
        for step in self._checkpoints.completed():
            heartbeat.beat(saved_step=step)
            self._call_hooks("checkpoint")

    def _call_hooks(self, event: str) -> None:
        for hook in self._schedule.hooks(event):
            hook(self)
