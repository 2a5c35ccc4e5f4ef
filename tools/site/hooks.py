"""What mkdocs.yml can't say: the README's tour as a page, what --help prints, a place for every public name."""

import contextlib
import io
import logging
import re
import zlib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parents[2]
PUBLIC_NAMES = ROOT / "tests/tftoolkit/public_names.txt"
_HELP = re.compile(r"^<!-- tftoolkit (.*?) ?--help -->$", re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Adds the README's tour, which lies outside of the pages' folder."""
    readme = (ROOT / "README.md").read_text()
    tour = readme[readme.index("## Five minutes") : readme.index("## When not to use it")]
    page = tour.replace("## ", "# ", 1).replace("](docs/", "](")
    files.append(File.generated(config, "five_minutes.md", content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts what a command's --help prints in the place of the comment that names it."""
    markdown = markdown.replace("](../README.md#five-minutes)", "](five_minutes.md)")
    return _HELP.sub(lambda found: f"```text\n{_help(found[1].split())}```", markdown)


def _help(command: list[str]) -> str:
    from tftoolkit import cli

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.run([*command, "--help"])
    return printed.getvalue()


def on_post_build(config: Any) -> None:
    """Warns, which ends a strict build, of public names that no page describes."""
    text = (Path(config.site_dir) / "objects.inv").read_bytes().partition(b"zlib.\n")[2]
    described = {line.split(" ")[0] for line in zlib.decompress(text).decode().splitlines()}
    for name in re.findall(r"^[\w.]+", PUBLIC_NAMES.read_text(), re.MULTILINE):
        is_module = any(place.startswith(f"tftoolkit.{name}.") for place in described)
        if not is_module and not any(place in described for place in _places(name)):
            log.warning("no page of docs/reference describes %s, or it has no docstring", name)


def _places(name: str) -> tuple[str, ...]:
    """Where a name may stand: as it is, or, of a function in a module of its name, there."""
    last = name.rpartition(".")[2]
    return f"tftoolkit.{name}", f"tftoolkit.{name}.{last}", f"tftoolkit.{name}.browser_page.{last}"
