"""One line about a running training."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from tftoolkit.trainers.console import console
from tftoolkit.trainers.runners.memory import peak_memory


@dataclasses.dataclass(frozen=True)
class _Moment:
    """What rates are counted from."""

    step: int
    time: float
    seconds_waited: float


class Progress:
    """Prints to stderr: a line that rewrites itself on a terminal; one line per 10 seconds, the first and the last
    elsewhere.

    Args:
        stop: number of steps to reach.
        examples_per_step: the batch size if it is known, for the rate.
        flops_per_step: function that counts a step's floating-point operations, or returns None.
        peak_flops: what the device can do per second at most, to show the utilization; None: GFLOP/s are shown.
        visible: False: count, but print nothing.
    """

    def __init__(
        self,
        stop: int,
        examples_per_step: int | None,
        flops_per_step: Callable[[], int | None],
        peak_flops: float | None = None,
        visible: bool = True,
    ) -> None:
        self._stop = stop
        self._examples = examples_per_step
        self._count_flops = flops_per_step
        self._peak_flops = peak_flops
        self._console = console(visible)
        # What comes before the first report is mostly compilation.
        self._reported: _Moment | None = None
        self._shown: _Moment | None = None

    def report(
        self,
        step: int,
        metrics: Mapping[str, Any],
        skipped: int,
        seconds_waited: float,
        evaluation: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Show ``step`` finished steps and return the rates since the report before.

        Those shown are since the line before.

        Args:
            step: number of finished steps.
            metrics: a line of ``metrics.jsonl``.
            skipped: number of updates skipped.
            seconds_waited: how long training waited for data so far.
            evaluation: the latest line of kind "eval".
        """
        now = _Moment(step, time.perf_counter(), seconds_waited)
        rates: dict[str, float] = {}
        parts = {"step": f"step {step}/{self._stop}", **_parts(metrics, skipped, evaluation or {})}
        if self._reported is None or self._shown is None:
            self._count_flops()  # takes a moment
            now = dataclasses.replace(now, time=time.perf_counter())
        elif step > max(self._reported.step, self._shown.step):
            rates = self._rates(self._reported, now)
            shown = self._rates(self._shown, now)
            parts |= {
                name: text.format(shown[name] * factor) for name, (text, factor) in _SHOWN.items() if name in shown
            }
            parts["eta"] = f"ETA {_clock((self._stop - step) / shown['steps_per_second'])}"
        self._reported = now
        if self._console.show(functools.partial(_fitting, parts)):
            self._shown = now
        return rates

    def _rates(self, since: _Moment, now: _Moment) -> dict[str, float]:
        seconds = now.time - since.time
        per_second = (now.step - since.step) / seconds
        rates = {"steps_per_second": per_second}
        if self._examples:
            rates["examples_per_second"] = per_second * self._examples
        rates["waiting_for_data"] = max(0.0, now.seconds_waited - since.seconds_waited) / seconds
        flops = self._count_flops()
        if flops and self._peak_flops:
            rates["model_flops_utilization"] = flops * per_second / self._peak_flops
        elif flops:
            rates["flops_per_second"] = flops * per_second
        rates["peak_memory_bytes"] = peak_memory()
        return rates

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.say(text)

    def close(self) -> None:
        self._console.close()


def _parts(metrics: Mapping[str, Any], skipped: int, evaluation: Mapping[str, Any]) -> dict[str, str]:
    parts = {}
    if "loss" in metrics:
        loss = metrics["loss"]
        parts["loss"] = "loss not finite" if loss is None else f"loss {loss:.4g}"
    for name, value in sorted(evaluation.items(), key=lambda item: item[0] == "loss"):
        if name not in ("kind", "step") and value is not None:
            parts[f"eval {name}"] = f"eval {name} {value:.4g}"
    if "learning_rate" in metrics:
        parts["learning_rate"] = f"rate {metrics['learning_rate']:.3g}"
    if skipped:
        parts["skipped"] = f"skipped {skipped}"
    return parts


def _fitting(parts: Mapping[str, str], columns: int) -> str:
    """As many of the parts as fit, the most important ones, in their order."""
    kept: set[str] = set()
    for name in sorted(parts, key=lambda name: _IMPORTANCE.index(name.split()[0])):
        if len("  ".join(text for part, text in parts.items() if part in {*kept, name})) <= columns:
            kept.add(name)
    return "  ".join(text for part, text in parts.items() if part in kept)


_IMPORTANCE = (
    "step", "eta", "loss", "skipped", "steps_per_second", "eval", "waiting_for_data", "learning_rate",
    "examples_per_second", "model_flops_utilization", "flops_per_second", "peak_memory_bytes",
)  # fmt: skip
_SHOWN = {
    "steps_per_second": ("{:.4g} steps/s", 1),
    "examples_per_second": ("{:.4g} examples/s", 1),
    "waiting_for_data": ("data wait {:.0f}%", 100),
    "model_flops_utilization": ("MFU {:.1f}%", 100),
    "flops_per_second": ("{:.3g} GFLOP/s", 1e-9),
    "peak_memory_bytes": ("peak {:.0f} MiB", 2**-20),
}


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
