"""Runs the notebooks of docs/notebooks/ and writes what they show into them (make notebooks).

    .venv/bin/python tools/notebooks/run.py [NAME ...]

Each runs in a kernel of its own, in an empty folder. A cell that fails ends it, and the file stays as it was.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).resolve().parents[2] / "docs/notebooks"
# What TensorFlow says about itself, and TFDS of data that it prepares the first time.
_CHATTER = re.compile(
    r"^(WARNING: All log messages before|[IWE]\d{4} |INFO:tensorflow:|.*TqdmWarning|  from .*tqdm|"
    r"Generating |Shuffling |Dataset .* downloaded|.*Downloading and preparing).*\n?",
    re.MULTILINE,
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with new outputs, made in ``folder``. Raises nbclient's CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TFDS_DATA_DIR"] = str(folder / "data")
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,  # of a line that rewrites itself only the last stays
    )
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in map(_tidied, cell.outputs) if one]
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _tidied(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """Without what differs from run to run and tells nothing."""
    if output.output_type == "stream":
        cache = os.environ.get("TFTOOLKIT_CACHE_DIR", str(Path.home() / ".cache/tftoolkit"))
        output.text = _CHATTER.sub("", output.text).replace(cache, "~/.cache/tftoolkit")
        return output if output.text.strip() else None
    if "text/plain" in output.get("data", {}):
        output.data["text/plain"] = _ADDRESS.sub("", output.data["text/plain"])
    return output


def main() -> None:
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(path, Path(folder))
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
