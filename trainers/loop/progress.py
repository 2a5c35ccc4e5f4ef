"""One line about a running training."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tftoolkit.trainers.runners.memory import peak_memory


class Progress:
    """Prints to stderr: a line that refreshes itself on a terminal, one line per report elsewhere.

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
        self._visible = visible
        # Rates are those since the report before; what comes before the first is mostly compilation.
        self._before: tuple[int, float, float] | None = None
        self._open_line = False

    def report(self, step: int, metrics: Mapping[str, Any], skipped: int, seconds_waited: float) -> dict[str, float]:
        """Show ``step`` finished steps and return the rates shown.

        Args:
            step: number of finished steps.
            metrics: a line of ``metrics.jsonl``.
            skipped: number of updates skipped.
            seconds_waited: how long training waited for data so far.
        """
        parts = [f"step {step}/{self._stop}"]
        if "loss" in metrics:
            loss = metrics["loss"]
            parts.append("loss not finite" if loss is None else f"loss {loss:.4g}")
        if "learning_rate" in metrics:
            parts.append(f"rate {metrics['learning_rate']:.3g}")
        if skipped:
            parts.append(f"skipped {skipped}")
        rates = {}
        if self._before is None:
            self._count_flops()  # takes a moment
        elif step > self._before[0]:
            rates = self._rates(step, seconds_waited)
            parts += [text.format(rates[name] * factor) for name, (text, factor) in _SHOWN.items() if name in rates]
            parts.append(f"ETA {_clock((self._stop - step) / rates['steps_per_second'])}")
        self._print("  ".join(parts), keep=not sys.stderr.isatty())
        self._before = (step, time.perf_counter(), seconds_waited)
        return rates

    def _rates(self, step: int, seconds_waited: float) -> dict[str, float]:
        assert self._before is not None
        first, begin, waited = self._before
        now = time.perf_counter()
        per_second = (step - first) / (now - begin)
        rates = {"steps_per_second": per_second}
        if self._examples:
            rates["examples_per_second"] = per_second * self._examples
        rates["waiting_for_data"] = max(0.0, seconds_waited - waited) / (now - begin)
        flops = self._count_flops()
        if flops and self._peak_flops:
            rates["model_flops_utilization"] = flops * per_second / self._peak_flops
        elif flops:
            rates["flops_per_second"] = flops * per_second
        rates["peak_memory_bytes"] = peak_memory()
        return rates

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._open_line:
            self._print("", keep=False)
        self._print(text, keep=True)

    def close(self) -> None:
        if self._open_line:
            self._print("", keep=True)

    def _print(self, text: str, *, keep: bool) -> None:
        if not self._visible:
            return
        erase = "\r\033[K" if self._open_line and sys.stderr.isatty() else ""
        sys.stderr.write(f"{erase}{text}" + ("\n" if keep else ""))
        sys.stderr.flush()
        self._open_line = not keep


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
