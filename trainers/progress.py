"""One line about a running training."""

import sys
import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """Prints to stderr: a line that refreshes itself on a terminal, one line per report elsewhere.

    Args:
        stop: number of steps to reach.
        examples_per_step: the batch size if it is known, for the rate.
    """

    def __init__(self, stop: int, examples_per_step: int | None) -> None:
        self._stop = stop
        self._examples = examples_per_step
        # The rate counts from the first report on: what comes before is mostly compilation.
        self._begin: tuple[int, float] | None = None
        self._open_line = False

    def report(self, step: int, metrics: Mapping[str, Any], skipped: int) -> dict[str, float]:
        """Show ``step`` finished steps and return the rates shown; ``metrics`` is a line of ``metrics.jsonl``."""
        now = time.perf_counter()
        parts = [f"step {step}/{self._stop}"]
        if "loss" in metrics:
            loss = metrics["loss"]
            parts.append("loss not finite" if loss is None else f"loss {loss:.4g}")
        if skipped:
            parts.append(f"skipped {skipped}")
        rates = {}
        if self._begin is None:
            self._begin = (step, now)
        elif step > self._begin[0]:
            per_second = (step - self._begin[0]) / (now - self._begin[1])
            rates["steps_per_second"] = per_second
            parts.append(f"{per_second:.4g} steps/s")
            if self._examples:
                rates["examples_per_second"] = per_second * self._examples
                parts.append(f"{rates['examples_per_second']:.4g} examples/s")
            parts.append(f"ETA {_clock((self._stop - step) / per_second)}")
        self._print("  ".join(parts), keep=not sys.stderr.isatty())
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
        erase = "\r\033[K" if self._open_line and sys.stderr.isatty() else ""
        sys.stderr.write(f"{erase}{text}" + ("\n" if keep else ""))
        sys.stderr.flush()
        self._open_line = not keep


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
