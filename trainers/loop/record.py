"""What one run tells: lines in ``metrics.jsonl``, TensorBoard, the console."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers.loop.metrics_log import MetricsLog
from tftoolkit.trainers.loop.progress import Progress
from tftoolkit.trainers.runners.asynchronous import AsynchronousRunner
from tftoolkit.trainers.runners.runner import Call, Runner


class Record:
    """Opened when a run begins, and closed when it ends.

    Args:
        directory: the run folder.
        step: number of finished steps; what earlier runs said of later ones is dropped.
        stop: number of steps to reach.
        pipeline: for the batch size.
        runner: for the floating-point operations of a step.
        peak_flops: see :class:`tftoolkit.trainers.Trainer`.
        sinks: functions that get each line of ``metrics.jsonl``.
        visible: False: write, print and send nothing, on workers beside the chief.

    Attributes:
        log: the lines of ``metrics.jsonl``.
        say: prints a line on the console.
    """

    def __init__(
        self,
        directory: Path,
        step: int,
        stop: int,
        pipeline: Pipeline,
        runner: Runner | AsynchronousRunner,
        *,
        peak_flops: float | None,
        sinks: Sequence[Callable[[dict[str, Any]], None]],
        visible: bool,
    ) -> None:
        self.log = MetricsLog(directory, step, sinks if visible else (), writes=visible)
        self._progress = Progress(
            stop, _batch_size(pipeline), runner.flops_per_step, peak_flops=peak_flops, visible=visible
        )
        self.say = self._progress.say

    def write_steps(self, step: int, call: Call, lines: Sequence[int], skipped: int, seconds_waited: float) -> None:
        """Write and show the metrics of some steps of ``call``.

        Args:
            step: number of finished steps.
            call: the latest.
            lines: after how many finished steps those metrics were.
            skipped: number of updates skipped so far.
            seconds_waited: how long training waited for data so far.
        """
        values = call.values()
        for line in lines:
            self.log.write("train", line, {name: value[line - call.first - 1] for name, value in values.items()})
        last = self.log.last
        self.log.write_rates(
            step, self._progress.report(step, last["train"], skipped, seconds_waited, last.get("eval"))
        )

    def close(self) -> None:
        with contextlib.closing(self.log):
            self._progress.close()


def _batch_size(pipeline: Pipeline) -> int | None:
    sizes = {spec.shape[0] if spec.shape.rank else None for spec in pipeline.element_spec.values()}
    return sizes.pop() if len(sizes) == 1 else None
