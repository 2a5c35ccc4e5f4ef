"""The messages that the page of questions quotes are those that the sources hold."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"^\*\*`([^`]+)`", (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
OTHERS = ("Could not find cuda", "FFI binding signature", "LookupError", "SourceError", "tf.function …", "skipped")
PLACEHOLDERS = ("channels=…", "ExportError: parity")  # whose words are filled in
SUFFIXES = {".py", ".cc", ".h", ".sh"}


@pytest.fixture(scope="module")
def sources() -> str:
    """All that could be said, with texts that go on in the next line in one piece."""
    folders = ("custom_ops", "pipelines", "trainers", "tftoolkit", "tools")  # rglob follows no links
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    text = "\n".join(file.read_text() for file in [*files, ROOT / "Makefile"])
    return re.sub(r'(["\'])\s*\n\s*f?\1', "", text).replace("\\n", "\n")


@pytest.mark.parametrize("message", [one for one in QUOTED if not one.startswith(OTHERS + PLACEHOLDERS)])
def test_a_message_is_still_said(message: str, sources: str) -> None:
    """Most pairs of words: names and numbers are filled in between."""
    words = re.sub(r"^\w+Error: (metric failed: )?", "", message).split(" ")
    pairs = [pair for pair in map(" ".join, itertools.pairwise(words)) if "…" not in pair]
    assert pairs
    assert sum(pair in sources for pair in pairs) > len(pairs) / 2, [pair for pair in pairs if pair not in sources]
