"""``tftoolkit runs [DIR]``. Needs no TensorFlow."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tftoolkit.cli.parser import Parser, path
from tftoolkit.watch import runs as watched

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "[DIR] [OPTION ...]",
        "Lists the runs below a folder: how far each is, how good, and what became of it. A run is a folder that "
        "trainers.Trainer or tftoolkit train has written.",
        "tftoolkit runs",
        "tftoolkit runs runs/digits --json",
    )
    parser.add_argument(
        "folder", type=path, nargs="?", metavar="DIR", default="runs", help="where to look (default: runs)"
    )
    parser.add_switch("--json", "print a list of objects; seconds are numbers, what is not known is null")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table. Raises OSError where the folder can't be read."""
    folder = Path(options.folder)
    found = [watched.look(name, place) for name, place in watched.find(folder).items()]
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=1, allow_nan=False))
    elif found:
        print(_table(found))
    else:
        print(f"no runs below {folder}: tftoolkit train writes them, and so does trainers.Trainer")
    return 0


def _table(found: Sequence[watched.Run]) -> str:
    head = ("run", "recipe", "state", "step", "of", "loss", "best", "changed", "ETA")
    rows = [head, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if name in ("step", "of", "loss", "ETA") else cell.ljust(width)
            for name, cell, width in zip(head, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    notes = [f"{_plain(one.name)}: {_plain(one.note)}" for one in found if one.note]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _row(one: watched.Run) -> tuple[str, ...]:
    best = "–" if one.best is None else f"{_plain(one.metric or '')} {one.best:.4g}"
    return (
        _plain(one.name),
        _plain(one.recipe or "–"),
        one.state,
        "–" if one.step is None else str(one.step),
        "–" if one.steps is None else str(one.steps),
        "–" if one.loss is None else f"{one.loss:.4g}",
        best,
        "–" if one.age is None else f"{_duration(one.age)} ago",
        "–" if one.eta is None else _duration(one.eta),
    )


def _duration(seconds: float) -> str:
    size, unit = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


def _plain(text: str) -> str:
    """Without what would move the cursor: names of folders may hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
