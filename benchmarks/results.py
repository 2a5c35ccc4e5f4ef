"""Figures in benchmarks/results.csv: one row each, with where, when and with what it was measured.

python benchmarks/results.py    # brings the tables of docs/performance.md and of the README up to date
"""

import csv
import importlib.metadata
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("results.csv")
PAGE = PATH.parents[1] / "docs/performance.md"
README = PATH.parents[1] / "README.md"
COLUMNS = ("benchmark", "variant", "metric", "value", "spread", "unit", "machine", "date", "versions")


_TORCH_LOAD = {"torch load_inline, pybind11": "PyTorch", "torch load_inline, TORCH_LIBRARY": "PyTorch"}
_TF_TORCH = {"TensorFlow, graph": "TensorFlow", "TensorFlow, XLA": "TensorFlow, XLA", "PyTorch": "PyTorch"}
_LOOPS = {
    "plain graph": "plain `tf.function`", "plain xla": "plain XLA", "Keras fit": "Keras `fit`",
    "PyTorch eager": "PyTorch", "PyTorch compile": "PyTorch, compiled",
}  # fmt: skip
_LOADERS = {
    "tf.data": "tf.data", "Grain": "Grain", "DataLoader": "PyTorch", "DataLoader, no checksums": "PyTorch",
    "DataLoader, by batch": "PyTorch, by batch", "pyarrow, taken": "pyarrow",
}  # fmt: skip


@dataclass(frozen=True)
class Headline:
    """A line of the README's table: one figure of ours beside the best one of all rivals that were measured with it.

    Attributes:
      what: was measured, in a reader's words.
      benchmark, metric: which rows of the results.
      ours: the variant that is ours.
      rivals: variant → what the README calls it.
    """

    what: str
    benchmark: str
    metric: str
    ours: str
    rivals: Mapping[str, str]

    def mine(self, rows: Sequence[Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
        """Variant → row, of one machine."""
        all_of_it = [row for row in rows if (row["benchmark"], row["metric"]) == (self.benchmark, self.metric)]
        machine = min(map(kind, all_of_it))  # the plainest one
        return {row["variant"]: row for row in all_of_it if kind(row) == machine}

    def line(self, rows: Sequence[Mapping[str, str]], mark: str) -> str:
        """Of the table, in Markdown; ``mark``: behind what was measured."""
        mine = self.mine(rows)
        value, unit = float(mine[self.ours]["value"]), mine[self.ours]["unit"]
        more_is_better = unit.endswith("/s")
        others = {variant: float(row["value"]) for variant, row in mine.items() if variant in self.rivals}
        best = (max if more_is_better else min)(others, key=others.__getitem__)
        times = value / others[best] if more_is_better else others[best] / value
        verdict = f"{times:.2g} ×" if times >= 1.1 else "even" if times > 1 / 1.1 else f"**lost**, {1 / times:.2g} ×"
        cells = f"{_rounded(value)} {unit}", f"{_rounded(others[best])} {unit}", verdict
        ours, theirs, verdict = (cell.replace(" ", "\N{NO-BREAK SPACE}") for cell in cells)
        return f"| {self.what}{mark} | {ours} | {theirs}, {self.rivals[best]} | {verdict} |"


# About ten, of every part and losses among them; the page has all figures.
HEADLINES = (
    Headline("an op of your own, source to result", "op_load", "cold, first result", "tftoolkit", _TORCH_LOAD),
    Headline("an op of your own, one eager call", "op_load", "call", "tftoolkit", _TORCH_LOAD),
    Headline("attention, 2,048 positions", "attention", "2048, causal, float32", "ours", _TF_TORCH),
    Headline(
        "last layer and loss: memory", "memory", "linear + cross-entropy, 4096x512x128256", "ours",
        _TF_TORCH,
    ),
    Headline(
        "CTC loss, 5,000 classes", "ctc_loss", "16x500x5000x100", "ours",
        {"TensorFlow, sparse": "TensorFlow", "PyTorch": "PyTorch"},
    ),
    Headline(
        "bags of embeddings, forward", "embedding_bag", "forward", "ours",
        {"gather, segment_sum": "TensorFlow", "embedding_lookup_sparse": "TensorFlow", "PyTorch": "PyTorch"},
    ),
    Headline("a step of training: small MLP", "runners", "mlp", "Trainer", _LOOPS),
    Headline("a step of training: CNN", "runners", "cnn", "Trainer", _LOOPS),
    Headline("JPEG files with RandAugment", "pipelines", "images speed", "tftoolkit", _LOADERS),
    Headline("CSV files, time to the first batch", "pipelines", "csv start", "tftoolkit", _LOADERS),
    Headline(
        "a checkpoint of 500 MB, checksummed", "scale_checkpoints", "500 MB, save", "Checkpointer",
        {"CheckpointManager": "`CheckpointManager`, without"},
    ),
)  # fmt: skip


def machine() -> str:
    """The processor, the number of cores, and how busy they were over the last minute."""
    about = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", about)
    name = model[1].strip() if model else platform.machine()
    name += " with AVX-512" * ("avx512f" in about)
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def kind(row: Mapping[str, str]) -> str:
    """Of a row's machine: figures of different ones stand beside each other."""
    return row["machine"].partition(",")[0]


def save(
    benchmark: str,
    figures: Mapping[tuple[str, str], Sequence[float]],
    unit: str | Mapping[str, str],
    where: str,
    **versions: str,
) -> None:
    """Replaces the benchmark's rows of these metrics on this kind of machine.

    Args:
      benchmark: the script's name.
      figures: (variant, metric) → the measured values; their median and range are written.
      unit: of all metrics, or for each.
      where: ``machine()``, asked before the benchmark made the machine busy.
      versions: of what matters, besides Python and TensorFlow.
    """
    versions = {"python": platform.python_version(), "tensorflow": importlib.metadata.version("tensorflow"), **versions}
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    measured = {metric for _, metric in figures}
    here = kind({"machine": where})
    rows = [
        row for row in read() if (row["benchmark"], kind(row)) != (benchmark, here) or row["metric"] not in measured
    ]
    for (variant, metric), values in figures.items():
        digits = [f"{value:.4g}" for value in (statistics.median(values), min(values), max(values))]
        spread = f"{digits[1]}–{digits[2]}" if len(values) > 1 else ""
        measure = unit if isinstance(unit, str) else unit[metric]
        line = (benchmark, variant, metric, digits[0], spread, measure, where, time.strftime("%Y-%m-%d"), text)
        rows.append(dict(zip(COLUMNS, line, strict=True)))
    with PATH.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read() -> list[dict[str, str]]:
    """All rows there are."""
    if not PATH.exists():
        return []
    with PATH.open(newline="") as file:
        return list(csv.DictReader(file))


def table(benchmark: str) -> str:
    """A benchmark's rows in Markdown, a table for each kind of machine."""
    rows = [row for row in read() if row["benchmark"] == benchmark]
    kinds = sorted({kind(row) for row in rows})
    return "\n".join(_table([row for row in rows if kind(row) == one]) for one in kinds) or "Not measured yet.\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Variants down and metrics across, or the other way if that is narrower."""
    cells = {(row["variant"], f"{row['metric']} ({row['unit']})"): row for row in rows}
    variants, metrics = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    if turned := len(metrics) > len(variants):
        variants, metrics = metrics, variants
    lines = [["", *metrics], ["---", *["---:"] * len(metrics)]]
    for down in variants:
        found = (cells.get((across, down) if turned else (down, across)) for across in metrics)
        lines.append([down, *(f"{row['value']} ({row['spread']})" if row else "" for row in found)])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = text.replace(" ()", "")  # a figure that was counted, not measured
    return f"{text}\n\n{_provenance(rows)} Median (range).\n"


def _provenance(rows: Sequence[Mapping[str, str]]) -> str:
    """Where, when and with what, and of which metrics where that differs."""
    metrics: dict[str, dict[str, None]] = {}
    for row in rows:
        metrics.setdefault(f"{row['machine']}; {row['date']}; {row['versions']}", {})[row["metric"]] = None
    if len(metrics) == 1:
        return f"{next(iter(metrics))}."
    *some, (text, _) = sorted(metrics.items(), key=lambda item: len(item[1]))
    return " ".join([*(f"{', '.join(names)}: {text}." for text, names in some), f"The others: {text}."])


def headlines(_: str) -> str:
    """The README's table."""
    rows = read()
    used = [headline.mine(rows)[headline.ours] for headline in HEADLINES]
    machines = sorted({kind(row) for row in used}, key=lambda one: -sum(kind(row) == one for row in used))
    marks = dict(zip(machines, ("", " †", " ‡"), strict=False))
    dates = {one: sorted(row["date"] for row in used if kind(row) == one) for one in machines}
    spans = {one: " to ".join(dict.fromkeys((days[0], days[-1]))) for one, days in dates.items()}
    where = [f"{mark.strip()} {one}, {spans[one]}".strip() for one, mark in marks.items()]
    head = "| on 2 cores | ours | best rival measured | |\n| --- | ---: | ---: | ---: |\n"
    lines = [f"{headline.line(rows, marks[kind(row)])}\n" for headline, row in zip(HEADLINES, used, strict=True)]
    return f"{head}{''.join(lines)}\n{'; '.join(where)}.\n"


def _rounded(value: float) -> str:
    """Three digits, with commas in thousands and no exponent."""
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{digits}f}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def inserted(page: Path, table: Callable[[str], str]) -> str:
    """The text of a page with ``table(name)`` between each ``<!-- name -->`` and ``<!-- end -->``."""
    return re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{table(match[2])}{match[3]}",
        page.read_text(),
        flags=re.DOTALL,
    )


def insert(page: Path, table: Callable[[str], str]) -> None:
    """Brings the tables of a page up to date."""
    page.write_text(inserted(page, table))


def main() -> None:
    insert(PAGE, table)
    insert(README, headlines)


if __name__ == "__main__":
    main()
