"""docs/known_converter_bugs.md is true for the installed versions: each block shows the wrong result it tells of."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[4] / "docs/known_converter_bugs.md"
SECTIONS = PAGE.read_text().split("\n## ")
BEGINNING, *BLOCKS = (
    match[1]
    for section in SECTIONS
    for match in re.finditer(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
)
CRASHING = [block for block in BLOCKS if "ends its process with" in block]


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)


def test_every_bug_has_one_block():
    titles = [section.splitlines()[0] for section in SECTIONS[1:]]
    assert [title for title in titles if not title.startswith("What is refused")] == titles[: len(BLOCKS)]


@pytest.mark.slow
def test_wrong_results(tmp_path):
    # One process: each would spend its time on the import of TensorFlow.
    blocks = [block for block in BLOCKS if block not in CRASHING]
    lines = [f"print({number})\nexec({BEGINNING + block!r}, {{}})" for number, block in enumerate(blocks)]
    done = run("\n".join(lines), tmp_path)
    assert done.returncode == 0, blocks[int(done.stdout.split()[-1])] + done.stderr[-2000:]
    assert len(done.stdout.split()) == len(blocks)


@pytest.mark.slow
@pytest.mark.parametrize("block", CRASHING, ids=range(len(CRASHING)))
def test_crashes(tmp_path, block):
    name = re.search(r"ends its process with (SIG\w+)", block)[1]
    assert run(BEGINNING + block, tmp_path).returncode == -getattr(signal, name)
