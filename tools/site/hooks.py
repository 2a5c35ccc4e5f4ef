"""What mkdocs.yml can't say: pages from the README and notebooks, what --help prints, a place for every public name."""

import contextlib
import io
import logging
import re
import sys
import zlib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tftoolkit import cli

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads hooks by their paths
import notebooks

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parents[2]
PUBLIC_NAMES = ROOT / "tests/tftoolkit/public_names.txt"
_HELP = re.compile(r"^<!-- tftoolkit (.*?) ?--help -->$", re.MULTILINE)

_OTHER_FILE = re.compile(r"\[([^]]+)\]\((?!https?:|#|\w+\.md|\w+/\w+\.md)[^)]*\)")  # a link to what is no page
_ON_THE_SITE = {
    "](../README.md#five-minutes)": "](five_minutes.md)",
    "](../CONTRIBUTING.md)": "](contributing.md)",
    "](../CHANGELOG.md)": "](changelog.md)",
    ".ipynb)": ".md)",
}


def on_files(files: Files, config: Any) -> Files:
    """Adds what is a page on the site alone: the README's tour, CONTRIBUTING, the changelog, notebooks as they ran."""
    readme = (ROOT / "README.md").read_text()
    tour = readme[readme.index("## Five minutes") : readme.index("## When not to use it")]
    page = tour.replace("## ", "# ", 1).replace("](docs/", "](")
    files.append(File.generated(config, "five_minutes.md", content=page))
    for name in ("CONTRIBUTING", "CHANGELOG"):
        page = (ROOT / f"{name}.md").read_text().replace("](docs/", "](")
        page = page.replace("](CONTRIBUTING.md", "](contributing.md").replace("](CHANGELOG.md", "](changelog.md")
        files.append(File.generated(config, f"{name.lower()}.md", content=_OTHER_FILE.sub(r"\1", page)))
    for notebook in sorted(notebooks.FOLDER.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=notebooks.page(notebook)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts what a command's --help prints in the place of the comment that names it."""
    for there, here in _ON_THE_SITE.items():
        markdown = markdown.replace(there, here)
    if commands := set(filter(None, _HELP.findall(markdown))):
        for missing in cli.COMMANDS.keys() - commands:
            log.warning("no section of docs/reference/command_line.md shows tftoolkit %s --help", missing)
    return _HELP.sub(lambda found: f"```text\n{_help(found[1].split())}```", markdown)


def _help(command: list[str]) -> str:
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
