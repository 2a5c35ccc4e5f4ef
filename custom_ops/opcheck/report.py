"""What the checks found, as a table that a person can act on."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from tftoolkit.errors import CodedError

_WIDTH = 116


class Failed(Exception):  # noqa: N818 (a verdict, not an error of the program)
    """Ends a check: what was seen, and what the op's author should do."""

    def __init__(self, seen: str, advice: str) -> None:
        super().__init__(seen)
        self.seen, self.advice = seen, advice


class Skipped(Exception):  # noqa: N818
    """Ends a check that cannot be made; the text says why."""


@dataclass(frozen=True)
class Result:
    """One row: the check, "ok", "FAILED" or "skipped", what was seen, and what to do about it."""

    check: str
    verdict: str
    seen: str
    advice: str = ""


@dataclass(frozen=True)
class OpReport:
    """All rows. ``str(report)`` is the table; ``report["gradient"]`` is one row."""

    op: str
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(result.check for result in self.results if result.verdict == "FAILED")

    def __getitem__(self, check: str) -> Result:
        return next(result for result in self.results if result.check == check)

    def __str__(self) -> str:
        width = max(len(result.check) for result in self.results)
        margin = " " * (width + 11)
        lines = [f"opcheck of {self.op}", f"{'check':{width}}  verdict  what was seen (→ what to do)"]
        for result in self.results:
            head = f"{result.check:{width}}  {result.verdict:7}  "
            lines.append(textwrap.fill(result.seen, _WIDTH, initial_indent=head, subsequent_indent=margin))
            if result.advice:
                arrow, indent = f"{margin}→ ", f"{margin}  "
                lines.append(textwrap.fill(result.advice, _WIDTH, initial_indent=arrow, subsequent_indent=indent))
        count = len(self.failed)
        lines.append(f"{count} of {len(self.results)} checks FAILED" if count else "no check failed")
        return "\n".join(lines)


class OpCheckError(CodedError, AssertionError):
    """At least one check failed; the text holds the table.

    Attributes:
      report: the OpReport.
    """

    error_code = "op-check"

    def __init__(self, report: OpReport) -> None:
        super().__init__(str(report))
        self.report = report
