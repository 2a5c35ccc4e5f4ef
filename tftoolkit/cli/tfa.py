"""``tftoolkit tfa FILE ...``: what became of the TensorFlow Addons in a program. Needs no TensorFlow."""

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tftoolkit.cli.parser import Parser, path
from tftoolkit.migration import programs
from tftoolkit.migration.answers import KINDS, recipe_imports, recipe_source


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "FILE [FILE ...] [OPTION ...]",
        "Reads programs and notebooks that use TensorFlow Addons and prints, for each place, what takes its part: a "
        "call of this package, one of TensorFlow or Keras, a recipe of a few lines, or why nothing does. A folder "
        "stands for the programs in it. Programs are read, not run; docs/tfa_migration.md is the whole table.",
        "tftoolkit tfa train.py --recipes",
        exit_codes="0 everything has an answer that is offered, "
        "1 something is not offered or unknown or a file cannot be read",
    )
    parser.add_argument("files", type=path, nargs="+", metavar="FILE", help="a .py or .ipynb file, or a folder of them")
    parser.add_switch("--recipes", "print the lines of the recipes below the list")
    parser.add_switch("--json", "print a list of objects: place, symbol, kind, answer, differs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the answers. Returns 1 when something has none."""
    found: list[programs.Use] = []
    broken = 0
    for file in _files(options.files):
        try:
            found += programs.uses(file)
        except (OSError, programs.ProgramError) as error:
            print(f"tftoolkit: {type(error).__name__}: {error}", file=sys.stderr)
            broken += 1
    if options.json:
        print(json.dumps([_as_json(use) for use in found], indent=1))
    else:
        _print(found, options.recipes)
    return 1 if broken or any(use.answer is None or use.answer.kind == "none" for use in found) else 0


def _files(names: Sequence[str]) -> list[Path]:
    files = []
    for name in map(Path, names):
        inside = [file for kind in ("*.py", "*.ipynb") for file in name.rglob(kind)] if name.is_dir() else [name]
        files += sorted(file for file in inside if ".ipynb_checkpoints" not in file.parts)
    return files


def _as_json(use: programs.Use) -> dict[str, str | None]:
    answer = use.answer
    known = {"kind": "unknown", "text": None, "differs": ""} if answer is None else dataclasses.asdict(answer)
    return {
        "place": use.place,
        "symbol": f"tfa.{use.symbol}",
        "kind": known["kind"],
        "answer": known["text"],
        "differs": known["differs"],
    }


def _print(found: Sequence[programs.Use], recipes: bool) -> None:
    told = set()
    for use in found:
        print(use)
        if use.answer is not None and use.answer.differs and use.symbol not in told:
            print(f"    {use.answer.differs}")
            told.add(use.symbol)
    names = dict.fromkeys(use.answer.text for use in found if use.answer is not None and use.answer.kind == "recipe")
    if recipes:
        for name in names:
            print(f"\n# recipe {name}\n{recipe_imports(name.partition('.')[0])}\n\n\n{recipe_source(name)}")
    counts = collections.Counter("unknown" if use.answer is None else KINDS[use.answer.kind] for use in found)
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in [*KINDS.values(), "unknown"])
    print(f"\n{len(found)} uses of TensorFlow Addons: {listed}.")
    if names and not recipes:
        print("--recipes prints the recipes.")
