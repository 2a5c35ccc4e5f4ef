"""Where a run is, and the way from and to a checkpoint."""

import time
from pathlib import Path

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers.checkpoints.shared_checkpoints import SharedCheckpoints
from tftoolkit.trainers.loop.metrics_log import MetricsLog
from tftoolkit.trainers.loop.recovery import Recovery


class RunState:
    """Counts a run's steps, batches and seconds; saves, restores and rolls back all that the run is.

    Args:
        directory: the run folder, for messages.
        seed: the trainer's; a run goes on with the seed that it began with.
        pipeline: is moved to where a restored run was.
        checkpoints: of the step's variables.
        recovery: what is known about divergence, which goes into checkpoints, too.

    Attributes:
        finished_steps: number of finished steps.
        position: the pipeline's number of the next batch.
        seconds: wall-clock time of training up to the latest checkpoint.
    """

    def __init__(
        self, directory: Path, seed: int, pipeline: Pipeline, checkpoints: SharedCheckpoints, recovery: Recovery
    ) -> None:
        self._directory = directory
        self._seed = seed
        self._pipeline = pipeline
        self._checkpoints = checkpoints
        self._recovery = recovery
        self._clock = 0.0
        self.finished_steps = 0
        self.position = pipeline.position
        self.seconds = 0.0

    def start_clock(self) -> None:
        self._clock = time.perf_counter()

    def advance(self, steps: int) -> None:
        """So many steps were made, each with a batch."""
        self.finished_steps += steps
        self.position += steps

    def save(self, *, score: float | None, repeatable: bool) -> None:
        """Save a checkpoint.

        Args:
            score: how good it is, higher is better; None if that isn't known.
            repeatable: an undisturbed run saves here, too, so that it may be rolled back to.

        Raises:
            CheckpointError: see :meth:`Checkpointer.save`.
        """
        if repeatable:
            self._recovery.note_saving(self.finished_steps)
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        state = {
            "seed": self._seed,
            "seconds": self.seconds,
            "pipeline": self._pipeline.state(self.position),
            **self._recovery.state(),
        }
        self._checkpoints.save(self.finished_steps, state, score=score, protect=self._recovery.protected_steps)

    def restore(self) -> None:
        """Go on from the newest intact checkpoint; without one stay at the beginning.

        Raises:
            CheckpointError: see :meth:`Checkpointer.restore`.
            ValueError: it was saved with another seed or pipeline.
        """
        restored = self._checkpoints.restore()
        self._recovery.watch.reset()
        if restored is None:
            return
        state = restored.state
        if state["seed"] != self._seed:
            raise ValueError(f"seed is {self._seed}, but {self._directory} was begun with {state['seed']}")
        self._pipeline.restore(state["pipeline"])
        self.position = self._pipeline.position
        self.finished_steps = restored.step
        self.seconds = state["seconds"]
        self._recovery.restore(state)

    def roll_back(self, diverged_at: int, log: MetricsLog) -> int:
        """Go back to the last good checkpoint, but on to the batch after that of step ``diverged_at``.

        Returns:
            How many batches are left out by that.

        Raises:
            TrainingDivergedError: there is no good checkpoint, or that was done too often.
        """
        target = self._recovery.target(diverged_at)
        end = self.position - (self.finished_steps - diverged_at)
        restored = self._checkpoints.restore(target)
        assert restored is not None
        self._checkpoints.discard_after(target)
        self._pipeline.restore(restored.state["pipeline"])
        first = self._pipeline.position
        left_out = end - first
        self.finished_steps, self.position = target, end
        self._recovery.note_rollback(target=target, diverged_at=diverged_at, first_batch=first, batches=left_out)
        log.rewind(target)
        for line in self._recovery.lines():
            # Named after the first step that follows, which drops the line when that is dropped.
            log.write("rollback", target + 1, line)
        return left_out
