"""What mkdocs.yml can't say: the pages' tables scroll, and the command line's page shows what --help prints."""

import contextlib
import io
import re
from typing import Any

_HELP = re.compile(r"^<!-- tftoolkit (.*?) ?--help -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _HELP.sub(lambda found: f"```text\n{_help(found[1].split())}```", markdown)


def _help(command: list[str]) -> str:
    from tftoolkit import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.run([*command, "--help"])
    return printed.getvalue()
