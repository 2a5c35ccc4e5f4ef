"""Figures in benchmarks/results.csv: one row each, with where, when and with what it was measured.

python benchmarks/results.py    # brings the tables of docs/performance.md up to date
"""

import csv
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PATH = Path(__file__).with_name("results.csv")
PAGE = PATH.parents[1] / "docs/performance.md"
COLUMNS = ("benchmark", "variant", "metric", "value", "spread", "unit", "machine", "date", "versions")


def machine() -> str:
    """The processor, the number of cores, and how busy they were over the last minute."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = model[1].strip() if model else platform.machine()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def save(
    benchmark: str,
    figures: Mapping[tuple[str, str], Sequence[float]],
    unit: str | Mapping[str, str],
    where: str,
    **versions: str,
) -> None:
    """Replaces the benchmark's rows of these metrics.

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
    rows = [row for row in read() if row["benchmark"] != benchmark or row["metric"] not in measured]
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
    """A benchmark's rows in Markdown: variants down and metrics across, or the other way if that is narrower."""
    rows = [row for row in read() if row["benchmark"] == benchmark]
    if not rows:
        return "Not measured yet.\n"
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
    return " ".join(f"{', '.join(names)}: {text}." for text, names in metrics.items())


def insert(page: Path, table: Callable[[str], str]) -> None:
    """Writes ``table(name)`` between each ``<!-- name -->`` and ``<!-- end -->`` of a page."""
    text = re.sub(
        r"(<!-- (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}{table(match[2])}{match[3]}",
        page.read_text(),
        flags=re.DOTALL,
    )
    page.write_text(text)


def main() -> None:
    insert(PAGE, table)


if __name__ == "__main__":
    main()
