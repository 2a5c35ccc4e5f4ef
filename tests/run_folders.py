"""Run folders made by hand, for the tests of what looks at them."""

import json
from pathlib import Path


def make(folder: Path, lines=(), config=None, status=None) -> Path:
    """``lines`` of ``metrics.jsonl`` are objects, or bytes as they are."""
    (folder / "checkpoints").mkdir(parents=True)
    with (folder / "metrics.jsonl").open("wb") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
    for name, content in (("config.json", config), ("status.json", status)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def train(step, **metrics):
    return {"kind": "train", "step": step, **metrics}


def evaluated(step, **metrics):
    return {"kind": "eval", "step": step, **metrics}
