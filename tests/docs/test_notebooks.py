"""The notebooks run from top to bottom, and those that lie here hold what they showed when they were run last."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
MOST_BYTES = 150_000


def shown(notebook: dict) -> list[tuple[str, dict]]:
    """(source of the cell, output) of all outputs."""
    return [("".join(cell["source"]), output) for cell in notebook["cells"] for output in cell.get("outputs", ())]


def text_of(output: dict) -> str:
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")))


def errors(notebook: dict) -> list[str]:
    """What was said of errors, without the numbers in it."""
    lines = [line for _, output in shown(notebook) for line in text_of(output).splitlines()]
    return [re.sub(r"[0-9.e+-]+", "0", line) for line in lines if re.search(r"Error\b|docs/errors", line)]


def test_there_is_one_for_each_part():
    assert [path.stem for path in NOTEBOOKS] == ["export", "ops", "pipelines", "training"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_there_and_are_nobodys_in_particular(path):
    notebook = json.loads(path.read_text())
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run in one go: make notebooks"
    outputs = shown(notebook)
    assert any(
        "image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}) for _, output in outputs
    )
    assert all(output["output_type"] != "error" for _, output in outputs)
    for place in ("/home/", "/root/", "/tmp/", str(ROOT)):
        assert place not in path.read_text()
    assert path.stat().st_size <= MOST_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, load_module, tmp_path):
    """A cell that fails raises; what the words promise is asserted in the cells."""
    fresh = load_module(ROOT / "tools/notebooks/run.py").executed(path, tmp_path)
    stored = json.loads(path.read_text())
    kinds = [
        {cell: output["output_type"] for cell, output in shown(one) if output.get("name") != "stderr"}
        for one in (fresh, stored)
    ]
    assert kinds[0] == kinds[1]
    assert errors(fresh) == errors(stored), "messages have changed: make notebooks"
    for cell, output in shown(fresh):
        if "tqdm(" in cell and output.get("name") == "stderr":
            assert "22/22" in text_of(output)
        if ".run(steps=" in cell and output.get("name") == "stderr":
            (last,) = [line for line in text_of(output).splitlines() if line.startswith("step ")][-1:]
            assert "\r" not in text_of(output)
            assert "ETA 0:00" in last


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_has_all_that_was_shown(path, load_module):
    page = load_module(ROOT / "tools/site/notebooks.py").page(path)
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        assert "".join(cell["source"]) in page
    for _, output in shown(notebook):
        if output.get("name") == "stdout":
            assert "".join(output["text"]).rstrip() in page
    images = [output for _, output in shown(notebook) if output.get("data", {}).keys() & {"image/png", "image/svg+xml"}]
    assert page.count('src="data:image/png') + page.count("<svg") == len(images)
    assert page.startswith("---\nhide: [toc]\n---\n\n# ")
