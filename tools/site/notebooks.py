"""Notebooks as pages: Markdown, with what the cells showed. Needs the standard library only; hooks.py puts them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "docs/notebooks"


def page(path: Path) -> str:
    """The notebook's cells one after the other: text, code, and below each its outputs."""
    parts = ["---\nhide: [toc]\n---"]  # 120 columns of code find room instead
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += filter(None, map(_shown, cell["outputs"]))
    parts.insert(2, f"This page is a [notebook]({path.name}) as it ran; open that one to change it.")
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        source = "".join(data["image/png"]).strip()
        return f'<div class="picture"><img alt="What the cell draws" src="data:image/png;base64,{source}"></div>'
    if "image/svg+xml" in data:  # HTML on a page ends at an empty line
        lines = "".join(data["image/svg+xml"]).splitlines()
        return '<div class="picture">' + "\n".join(line for line in lines if line.strip()) + "</div>"
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```{{.text .output}}\n{text}\n```" if text else ""
