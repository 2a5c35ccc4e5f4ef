"""``tftoolkit new NAME --from RECIPE``. Needs no TensorFlow."""

import argparse
from pathlib import Path

from tftoolkit import projects
from tftoolkit.cli.parser import Parser, path
from tftoolkit.trainers import recipes


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "NAME --from=RECIPE [OPTION ...]",
        "Makes a recipe a package of one's own, NAME, in a new folder: settings, data, model, step and export as files "
        "to be changed, a program, a test, and a README with two commands.",
        "tftoolkit new mine --from=digits_cnn && cd mine && python -m mine",
    )
    parser.add_argument("name", metavar="NAME", help="of folder and package: letters, digits, _")
    parser.add_argument(
        "--from", dest="recipe", metavar="RECIPE", default="digits",
        help=f"what to begin with: {', '.join(recipes.names())} (default: digits)",
    )  # fmt: skip
    parser.add_argument(
        "--directory", type=path, metavar="DIR", default=".", help="where the new folder shall lie (default: here)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Makes the project and says what to do next."""
    files = projects.make(options.name, options.recipe, Path(options.directory))
    for file in files:
        print(file)
    folder = Path(options.directory) / options.name
    print(f"\ncd {folder} && python -m {options.name}\n({folder / 'README.md'} says what must be installed)")
    return 0
