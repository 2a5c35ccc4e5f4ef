"""``tftoolkit explain [CODE]``. Needs no TensorFlow."""

import argparse
import difflib
import re

from tftoolkit import errors
from tftoolkit.cli.parser import Parser, UsageError


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "[CODE]",
        "Says of an error what happened, why, and what to do. Its code stands at the end of its message; without one, "
        "all codes are listed.",
        "tftoolkit explain source-damaged",
        exit_codes="0 done",
    )
    parser.add_argument("code", nargs="?", metavar="CODE", help="such as source-damaged")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints a paragraph of the page on errors, or the codes by part. Raises UsageError of an unknown code."""
    paragraphs = errors.paragraphs()
    if options.code is None:
        print("\n".join(f"{part:12}{code}" for code, (part, _) in paragraphs.items()))
        return 0
    code = options.code.strip("[] ").rpartition("#")[2]  # a message's end may be given as it stands there
    if code not in paragraphs:
        near = difflib.get_close_matches(code, paragraphs, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "without a code, all are listed"
        raise UsageError(f"explain: no error has the code {code!r}: {hint}")
    print(_plain(paragraphs[code][1]))
    return 0


def _plain(markdown: str) -> str:
    """Of links only their text."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", markdown)
