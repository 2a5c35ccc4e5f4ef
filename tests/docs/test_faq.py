"""The messages that the page of questions quotes are those that the sources hold, word for word.

On the page … is what a call fills in, in the sources a placeholder; a message may stop earlier than its source does.
"""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What paragraphs begin with in bold, less the names among it.
HEADS = re.findall(r"^((?:\*\*`.*?\*\*,? ?)+)", (ROOT / "docs/faq.md").read_text(), re.MULTILINE)
QUOTED = [quoted for head in HEADS for quoted in re.findall(r"`([^`]+)`", head) if re.search(r"\W", quoted)]
FOLDERS = ("custom_ops", "pipelines", "trainers", "tftoolkit", "tools")  # rglob follows no links
SUFFIXES = {".py", ".cc", ".h", ".sh"}

# TensorFlow's own: the file that says it; None: its shared libraries.
TENSORFLOWS = {
    "Could not find cuda drivers": None,
    "failed call to cuInit": None,
    "FFI binding signature is not compatible with a function type": "include/xla/ffi/api/api.h",
}
# Put together of several: each of them is in the sources.
PARTS = {
    "… has shape …, but its dimension … must be … as in …": [
        "… has shape …, but …",
        "its dimension … must be … as in …",
    ],
    "NotImplementedError: … takes its gradient from a TensorFlow function, so JAX cannot differentiate it here": [
        'raise NotImplementedError(f"… …, so JAX cannot differentiate it here',
        "takes its gradient from a TensorFlow function",
    ],
    "ExportError: parity failed at …": ["… failed…", 'ExportError("parity", '],
    "ExportError: metric failed: fell from … to …; max_drop allows …": [
        "… failed…: …",
        'ExportError("metric", f"fell from … to …; max_drop allows …',
    ],
    "TFLite has no builtin op for a list of tensors of unknown shape; a recurrent layer or a loop": [
        "TFLite has no builtin op for a list of tensors of unknown shape; …",
        "a recurrent layer or a loop",
    ],
}
HELD = [part for quoted in QUOTED if quoted not in TENSORFLOWS for part in PARTS.get(quoted, [quoted])]


def plain(code: str) -> str:
    """Each text in one line, with … for its placeholders: {x} in Python, $(X) in Makefiles, ", x, " in C++."""
    code = re.sub(r'(["\'])\s*\n\s*f?\1', "", code).replace("\\n", " ")
    code = re.sub(r"\{[^{}\"\n]*\}|\$\(\w+\)", "…", code)
    return re.sub(r'", [^"\n]*, "', "…", code)


def says(text: str, message: str) -> bool:
    """Whether one text holds all words of the message in their order."""
    words = message.split("…")
    pattern = re.compile(r'[^"\n]*?'.join(map(re.escape, words)))
    longest = re.escape(max(words, key=len))  # is found sooner than the pattern
    return any(
        pattern.search(text, text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.end()))
        for found in re.finditer(longest, text)
    )


@pytest.fixture(scope="module")
def sources() -> str:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    return plain("\n".join(file.read_text() for file in [*files, ROOT / "Makefile"]))


@pytest.mark.parametrize("message", HELD)
def test_a_message_is_still_said(message: str, sources: str) -> None:
    assert says(sources, message)


@pytest.mark.parametrize("message", TENSORFLOWS)
def test_what_tensorflow_says_is_quoted_and_still_said(message: str) -> None:
    assert message in QUOTED
    if file := TENSORFLOWS[message]:
        package = Path(importlib.util.find_spec("tensorflow").origin).parent
        assert says(plain((package / file).read_text()), message)


def test_parts_are_those_of_a_message() -> None:
    assert set(PARTS) <= set(QUOTED)
