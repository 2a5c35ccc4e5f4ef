"""What a finished run of a recipe must have left: the promised result, proven files, a report that shows them."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tftoolkit.jobs import Job
from tftoolkit.jobs.exports import TARGETS

SEEDS = [
    pytest.param(0, marks=pytest.mark.slow),
    *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2)),
]
# By job: a section of the report, and how many of what it shows.
SAMPLES = {
    "audio_classification": ("Test clips", "<svg", 8),
    "detection": ("Test scenes", "<svg", 12),
    "gan": ("Generated pictures", "<img", 60),
    "image_classification": ("Test images", "<img", 60),
    "language_modelling": ("What it writes", "<pre>", 2),
    "tabular": ("Test rows", "<svg", 1),
    "transfer": ("Test images", "<img", 60),
}


def check(directory: Path, job: Job) -> None:
    """Once it has run in this folder."""
    config = job.config
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "eval"
    assert last["step"] == config.steps
    bounds = [(key, value, 1) for key, value in config.get("at_least", {}).items()]
    bounds += [(key, value, -1) for key, value in config.get("at_most", {}).items()]
    assert bounds
    for key, value, sign in bounds:
        assert sign * last[key] >= sign * value, f"{key} is {last[key]}"
    files = [TARGETS[target][0] for target in config.exports]
    if config.get("web_page") and shutil.which("npm") and shutil.which("chromium"):
        files.append("page")
    rows = json.loads((directory / "export/report.json").read_text())["rows"]
    assert [row["file"] for row in rows] == files
    assert all((directory / "export" / file).exists() for file in files)
    check_page((directory / "report.html").read_text(), job, files)


def check_page(page: str, job: Job, files: list[str]) -> None:
    """Curves, files, samples; and it opens without a network."""
    parts = dict(re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|</body>)", page, re.DOTALL))
    assert parts["Training"].count("<svg") == len(job.charts)
    for name in job.charts:
        assert name.replace("_", " ") in parts["Training"]
    for file in files:
        assert f"<td>{file}</td>" in parts["Exported files"]
        assert job.config.job != "language_modelling" or f"<td>{file}</td>" in parts["Files that write"].replace(
            "\n", ""
        )
    title, mark, count = SAMPLES[job.config.job]
    assert parts[title].count(mark) == count
    assert not re.search(r"(src|href)=.https?:", page)
