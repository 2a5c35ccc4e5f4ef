"""What the typed errors of all parts share."""

import re
from pathlib import Path
from typing import Any

PAGE = "docs/errors.md"
_ENDING = re.compile(r"[ \n]\[tftoolkit: docs/errors\.md#([a-z0-9-]+)\]$")


def with_code(text: str, code: str) -> str:
    """The message with its place in ``docs/errors.md`` at the end, as that of each CodedError has it."""
    between = "\n" if "\n" in text else " "  # a log or a table at the end is not continued
    return f"{text}{between}[tftoolkit: {PAGE}#{code}]"


class CodedError(Exception):
    """An error whose message ends with the place in ``docs/errors.md`` that explains it.

    ``error_code`` is of the class, or of one error: ``raise SourceError(text, code="source-damaged")``. A text that
    ends so already, since it is that of an error which is handed on, keeps its own. Each code has a paragraph on that
    page, and a test compares the two.
    """

    error_code: str
    """Which paragraph of ``docs/errors.md`` explains it."""

    def __init__(self, *arguments: Any, code: str | None = None) -> None:
        super().__init__(*arguments)
        handed_on = _ENDING.search(str(arguments[-1])) if arguments else None
        if given := handed_on[1] if handed_on else code:
            self.error_code = given

    @property
    def plain(self) -> str:
        """The message without its ending, for lists and for longer messages."""
        return _ENDING.sub("", str(self))

    def __str__(self) -> str:
        text = super().__str__()
        return text if _ENDING.search(text) else with_code(text, self.error_code)


def paragraphs() -> dict[str, tuple[str, str]]:
    """Code → the part that has it and, in Markdown, what the page says of it."""
    found = {}
    page = Path(__file__).with_name("errors.md").read_text("utf-8")  # a link to PAGE; a copy in the wheel
    for part in page.split("\n## ")[1:]:
        name, *sections = part.split("\n### ")
        for section in sections:
            code, _, text = section.partition("\n")
            found[code] = name.split("\n", 1)[0], text.strip()
    return found
