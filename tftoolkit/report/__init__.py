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

MAX_PICTURES = 60
_FRACTIONS = ("accuracy", "precision", "recall", "map")  # shown as percentages


@dataclass(frozen=True)
class Result:
    """A metric of the last evaluation, and the bound that the recipe sets: a lower or an upper one."""

    name: str
    value: float
    bound: float
    at_least: bool

    @property
    def is_reached(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        return f"test {self.words} {self.text} ({self.expectation}{'' if self.is_reached else ': NOT REACHED'})"

    @property
    def words(self) -> str:
        return self.name.replace("_", " ")

    @property
    def text(self) -> str:
        return number(self.name, self.value)

    @property
    def expectation(self) -> str:
        return f"the recipe expects at {'least' if self.at_least else 'most'} {number(self.name, self.bound)}"


@dataclass(frozen=True)
class Picture:
    """``png``: a data URI, see ``png``; ``alt``: what is to be seen, for those who can't."""

    png: str
    caption: str
    alt: str
    is_wrong: bool = False


@dataclass(frozen=True)
class Section:
    """A heading, a line of explanation, and what there is of pictures, texts (caption → text), inline SVGs and rows of
    a table, of which the first is its head."""

    title: str
    note: str
    pictures: Sequence[Picture] = ()
    texts: Sequence[tuple[str, str]] = ()
    charts: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()


def number(name: str, value: float) -> str:
    """A metric's value as people read it."""
    is_fraction = any(word in _FRACTIONS for word in name.lower().split("_"))
    return f"{value:.2%}" if is_fraction else f"{value:.4g}"


def read_metrics(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of ``metrics.jsonl`` by kind."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        by_kind.setdefault(entry["kind"], []).append(entry)
    return by_kind


def classified(
    title: str, images: np.ndarray, labels: np.ndarray, predicted: np.ndarray, names: Sequence[str] = ()
) -> Section:
    """Pictures and what the model took them for: the wrong ones first, then others in order, ``MAX_PICTURES`` in all.

    Args:
      images: float32 [n, height, width, 1 or 3] with values from 0 to 1.
      labels, predicted: integers [n].
      names: of the classes; their numbers by default.
    """
    called = names or [str(i) for i in range(1 + max(labels.max(), predicted.max()))]
    wrong = labels != predicted
    order = [*np.flatnonzero(wrong), *np.flatnonzero(~wrong)][:MAX_PICTURES]
    pictures = []
    for i in order:
        label, found = called[labels[i]], called[predicted[i]]
        caption = f"{label}, taken for {found}" if wrong[i] else found
        pictures.append(Picture(png(images[i]), caption, label, bool(wrong[i])))
    count = sum(picture.is_wrong for picture in pictures)
    return Section(title, f"{count} of these {len(pictures)} are wrong and marked; errors come first.", pictures)


def png(image: np.ndarray) -> str:
    """[height, width, 1 or 3] with values from 0 to 1 as a data URI; one channel is dark ink on light paper."""
    levels = 1 - image[..., 0] if image.shape[-1] == 1 else image
    file = io.BytesIO()
    Image.fromarray(np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def svg(figure: Figure) -> str:
    """A figure as inline SVG, whose text is text."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]  # without the XML prologue


def render(
    *,
    title: str,
    results: Sequence[Result],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
    charts: Sequence[str],
    sections: Sequence[Section],
    proof: ExportReport,
    config: Mapping[str, Any],
) -> str:
    """The page as HTML text.

    Args:
      results: the first one is the headline.
      metrics: the lines of ``metrics.jsonl`` by kind: "train" and "eval".
      charts: the metrics to draw; either kind may lack some.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tftoolkit.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    threads = sorted({count for row in proof.rows for count in row.latency})
    # A page brings its runtime along: beside its size the others would be nothing.
    drawn = tuple(row for row in proof.rows if not row.format.startswith("web page"))
    rows = [
        {
            "file": row.file,
            "format": row.format,
            "size": f"{row.size / 1000:,.1f} kB",
            "latency": [_latency(row.latency.get(count)) for count in threads],
            "error": f"{row.worst.error:.2g}" if row.worst else "–",
            "bound": f"{row.worst.bound:.2g}" if row.worst else "–",
            "metric": _metric(results[0], row.metric) if results and row.metric is not None else "–",
        }
        for row in proof.rows
    ]
    return environment.get_template("report.html").render(
        title=title,
        results=results,
        final=metrics["eval"][-1],
        charts=[_chart(metrics, name) for name in charts],
        export_chart=bar_chart(ExportReport(drawn)) if drawn else "",
        sections=sections,
        threads=threads,
        rows=rows,
        config=config,
        versions={name: metadata.version(name) for name in ("tftoolkit", "tensorflow")},
    )


def _metric(result: Result, value: float) -> str:
    """An export's metric is better when larger; where the recipe's is not, it is minus that."""
    return number(result.name, value if result.at_least else -value)


def _latency(known: Latency | None) -> str:
    return f"{known.median:.3f} (p95 {known.p95:.3f})" if known else "–"


def _chart(metrics: Mapping[str, Sequence[Mapping[str, Any]]], name: str) -> str:
    """Training and test curve over steps."""
    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(5.4, 3.2), layout="constrained")
        axes = figure.subplots()
        shown = []
        for kind, label, style in (("train", "training batch", {"alpha": 0.5}), ("eval", "test set", {"linewidth": 2})):
            # A value that was not finite is null in the file, and a gap in the curve.
            points = [
                (entry["step"], np.nan if entry[name] is None else entry[name])
                for entry in metrics[kind]
                if name in entry
            ]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) == 1 else None, **style)
                shown += [value for _, value in points]
        if name == "accuracy":
            # The first steps would flatten everything that follows; the scale is that of the test curve.
            worst = min((entry[name] for entry in metrics["eval"] if name in entry), default=0.0)
            axes.set_ylim(max(0.0, 1 - 4 * max(1 - worst, 0.005)), 1.002)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif np.nanmin(shown, initial=np.inf) > 0 and np.nanmax(shown, initial=0.0) > 10 * np.nanmin(shown):
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_title(name.replace("_", " "), loc="left")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return svg(figure)
