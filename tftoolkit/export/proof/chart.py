"""The exported files side by side as bars."""

import io

from tftoolkit.export.report import ExportReport


def bar_chart(report: ExportReport) -> str:
    """Size, latency and peak memory of every file as one inline SVG, one bar for each file. Needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [f"{row.file}\n{row.format}" for row in report.rows]
    panels: dict[str, list[float | None]] = {
        "size, kB": [row.size / 1e3 for row in report.rows],
        "latency, ms (fewest threads, median)": [
            row.latency[min(row.latency)].median if row.latency else None for row in report.rows
        ],
        "peak memory, MB": [None if row.memory is None else row.memory / 1e6 for row in report.rows],
    }
    panels = {title: values for title, values in panels.items() if any(value is not None for value in values)}
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(11, 1.1 + 0.5 * len(names)), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(row, panels.items(), strict=True):
            bars = axes.barh(names, [value or 0.0 for value in values], color="#3b6ea8", height=0.6)
            axes.bar_label(bars, ["–" if value is None else _number(value) for value in values], padding=3)
            axes.set_title(title, loc="left", fontsize=10)
            axes.margins(x=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].invert_yaxis()  # the others share it
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]  # without the XML prologue


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
