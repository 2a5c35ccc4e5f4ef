"""A file of ours that is longer than a reader can hold in mind says why in its first lines."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = 360


def test_long_files_say_why():
    patterns = ["*.py", "*.cc", "*.cu", "*.h"]
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False)
    files = [ROOT / name for name in listed.stdout.splitlines()] or [
        file for pattern in patterns for part in ("custom_ops", "pipelines", "trainers", "tftoolkit", "tools", "tests")
        for file in (ROOT / part).rglob(pattern)
    ]  # fmt: skip
    texts = {file: file.read_text().splitlines() for file in files if file.is_file()}
    silent = {
        str(file.relative_to(ROOT)): len(lines)
        for file, lines in texts.items()
        if len(lines) > LINES and "a long file" not in " ".join(lines[:20]).lower()
    }
    assert not silent
