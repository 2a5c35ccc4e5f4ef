"""What an export found out: ``ExportReport`` on success, ``ExportError`` on refusal."""

import dataclasses
import functools
import json
import math
import re
from typing import Any

from tftoolkit.errors import CodedError

MAX_TEXT = 300  # of what a program that we call says
_PLACE = re.compile(r"\s|<|Graph execution error|Detected at node|Stack trace")  # said before the matter


class ExportError(CodedError, RuntimeError):
    """A stage of the export failed, and nothing was written.

    Attributes:
        stage: trace, decompose, convert, structure, golden, parity, metric, write or browser.
        signature, tensor: what it was about, or None where it concerns the whole file.
        reason: what went wrong, and what to do.
    """

    def __init__(self, stage: str, reason: str, *, signature: str | None = None, tensor: str | None = None):
        self.stage, self.reason, self.signature, self.tensor = stage, reason, signature, tensor
        where = [f"signature {signature!r}"] if signature is not None else []
        where += [f"tensor {tensor!r}"] if tensor is not None else []
        text = f"{stage} failed{' at ' if where else ''}{', '.join(where)}: {reason}"
        super().__init__(text, code=f"export-{stage}")

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled with the arguments of BaseException.__init__, which are not those of this class.
        rebuilt = functools.partial(ExportError, signature=self.signature, tensor=self.tensor)
        return rebuilt, (self.stage, self.reason)


@dataclasses.dataclass(frozen=True)
class Check:
    """Parity of one output on one kind of inputs: ``error`` is max|file - TensorFlow|, ``bound`` what is allowed.

    For integer, bool and string outputs both are fractions of elements that differ; a bound above 1 says that nearly
    all of an integer output changes by rounding alone, and both are differences. ``bound`` is None where no bound can
    be derived (an int8 file on inputs outside its calibrated range), and the error only informs. On infinite inputs and
    NaN the error is the fraction of elements that are finite, infinite or NaN otherwise.

    ``inputs``: real, random, zeros, large, inf, nan; of integers also 0..9, 0..255, -1..1, -9..9 and limits.
    """

    signature: str
    tensor: str
    inputs: str
    error: float
    bound: float | None


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds per call of the default signature with batch size 1 (or the file's fixed batch)."""

    median: float
    p95: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known about one file. ``size`` in bytes, ``latency`` by number of threads.

    ``memory``: bytes that the file needs in its runtime beyond the runtime itself. None for SavedModels and web pages,
    since a process with TensorFlow would cost many seconds and a browser's memory is not the file's, and where Linux's
    /proc is missing.
    ``signatures``: inputs and outputs of each in the file's order, as ``name: dtype[shape]``.
    ``dropped``: by signature the kinds of made-up inputs that the file is not proven on, as TensorFlow itself fails on
    them (or overflows, in an integer format).
    ``unproven``: outputs, or parts of them, of which the bound says nothing, where ``max_drop`` decided.
    """

    file: str
    format: str
    size: int
    latency: dict[int, Latency]
    checks: tuple[Check, ...]
    metric: float | None
    golden_metric: float | None
    memory: int | None = None
    signatures: dict[str, dict[str, list[str]]] = dataclasses.field(default_factory=dict)
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    unproven: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """As plain values for JSON."""
        return dataclasses.asdict(self)

    @property
    def worst(self) -> Check | None:
        """The check nearest to its bound, on real inputs where there are any, else on random ones."""
        bounded = [check for check in self.checks if check.bound is not None]
        real = [check for check in bounded if check.inputs == "real"]
        random = [check for check in bounded if check.inputs == "random"]
        return max(real or random, key=_tightness, default=None)


def _tightness(check: Check) -> tuple[float, float]:
    return (check.error / check.bound if check.bound else 0.0, check.error)


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """One row for each file; ``str()`` is a table, ``+`` joins the reports of several files."""

    rows: tuple[Row, ...]

    def __add__(self, other: "ExportReport") -> "ExportReport":
        return ExportReport(self.rows + other.rows)

    def __str__(self) -> str:
        threads = sorted({count for row in self.rows for count in row.latency})
        header = ["file", "format", "size", "memory", *(f"ms, {count} thread{'s' * (count > 1)}" for count in threads)]
        table = [[*header, "max error", "bound", "metric", "golden"]]
        for row in self.rows:
            latencies = [row.latency.get(count) for count in threads]
            table.append(
                [
                    row.file,
                    row.format,
                    _bytes(row.size),
                    _bytes(row.memory) if row.memory is not None else "-",
                    *(f"{known.median:.3g} (p95 {known.p95:.3g})" if known else "-" for known in latencies),
                    f"{row.worst.error:.2g}" if row.worst else "-",
                    f"{row.worst.bound:.2g}" if row.worst else "-",
                    f"{row.metric:.4f}" if row.metric is not None else "-",
                    f"{row.golden_metric:.4f}" if row.golden_metric is not None else "-",
                ]
            )
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
        for row in self.rows:
            for signature, kinds in row.dropped.items():
                lines.append(
                    f"{row.file}, {signature}: TensorFlow takes no calls on {', '.join(kinds)}: not proven there; "
                    "input_ranges can say what inputs there are"
                )
            if row.unproven:
                lines.append(f"{row.file}: {', '.join(row.unproven)} proven by the metric alone")
        return "\n".join(line.rstrip() for line in lines)

    def to_json(self) -> str:
        """The same as JSON, with every check; infinite and NaN numbers are written as strings."""
        return json.dumps({"rows": plain([row.to_dict() for row in self.rows])}, indent=1, allow_nan=False)


def first_line(error: BaseException) -> str:
    """What an exception says, without colours, places in a program and what follows the first line."""
    text = re.sub(r"\x1b\[[0-9;]*m|\{\{function_node [^}]*\}\} ?", "", str(error)).strip()
    lines = text.splitlines() or [type(error).__name__]
    line = next((line for line in lines if line and not _PLACE.match(line)), lines[0]).strip()
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]}…"


def plain(value: object) -> object:
    """For JSON: keys as text, tuples as lists, infinity and NaN as strings."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _bytes(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1000:.1f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"
