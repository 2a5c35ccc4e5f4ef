"""``report.html``: one file that shows a run to a person and opens without a network."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from tftoolkit.export import ExportReport, Latency, bar_chart

MAX_SAMPLES = 60


@dataclass(frozen=True)
class Sample:
    """One picture, what it is and what the model took it for."""

    png: str
    label: int
    predicted: int

    @property
    def is_wrong(self) -> bool:
        return self.label != self.predicted


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of ``metrics.jsonl`` by kind."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        by_kind.setdefault(entry["kind"], []).append(entry)
    return by_kind


def samples(images: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> list[Sample]:
    """The wrong ones first, then others in order, ``MAX_SAMPLES`` in all.

    Args:
      images: float32 [n, height, width, 1] with values from 0 to 1.
      labels, predicted: integers [n].
    """
    wrong = labels != predicted
    order = [*np.flatnonzero(wrong), *np.flatnonzero(~wrong)][:MAX_SAMPLES]
    return [Sample(_png(images[i]), int(labels[i]), int(predicted[i])) for i in order]


def render(
    *,
    title: str,
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    samples: Sequence[Sample],
    proof: ExportReport,
    config: Mapping[str, Any],
) -> str:
    """The page as HTML text. ``metrics`` holds the kinds "train" and "eval", each with "loss" and "accuracy"."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tftoolkit.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    threads = sorted({count for row in proof.rows for count in row.latency})
    rows = [
        {
            "file": row.file,
            "format": row.format,
            "size": f"{row.size / 1000:,.1f} kB",
            "latency": [_latency(row.latency.get(count)) for count in threads],
            "error": f"{row.worst.error:.2g}" if row.worst else "–",
            "bound": f"{row.worst.bound:.2g}" if row.worst else "–",
            "metric": f"{row.metric:.2%}" if row.metric is not None else "–",
        }
        for row in proof.rows
    ]
    return environment.get_template("report.html").render(
        title=title,
        final=metrics["eval"][-1],
        wrong=sum(sample.is_wrong for sample in samples),
        charts=[_chart(metrics, "loss"), _chart(metrics, "accuracy")],
        export_chart=bar_chart(proof),
        samples=samples,
        threads=threads,
        rows=rows,
        config=config,
        versions={name: metadata.version(name) for name in ("tftoolkit", "tensorflow")},
    )


def _latency(known: Latency | None) -> str:
    return f"{known.median:.3f} (p95 {known.p95:.3f})" if known else "–"


def _chart(metrics: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> str:
    """Training and test curve over steps as inline SVG."""
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for kind, label, style in (("train", "training batch", {"alpha": 0.5}), ("eval", "test set", {"linewidth": 2})):
            # A value that was not finite is null in the file, and a gap in the curve.
            points = [(entry["step"], np.nan if entry[name] is None else entry[name]) for entry in metrics[kind]]
            axes.plot(*zip(*points, strict=True), label=label, **style)
        if name == "accuracy":
            # The first steps would flatten everything that follows; the scale is that of the test curve.
            worst = min(entry[name] for entry in metrics["eval"])
            axes.set_ylim(max(0.0, 1 - 4 * max(1 - worst, 0.005)), 1.002)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(name, loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # without the XML prologue


def _png(image: np.ndarray) -> str:
    """A data URI; dark ink on light paper."""
    file = io.BytesIO()
    Image.fromarray(np.round(255 * (1 - image[..., 0])).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
