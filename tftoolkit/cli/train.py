"""``tftoolkit train RECIPE``."""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tftoolkit.cli import UsageError, import_tensorflow
from tftoolkit.cli.parser import Parser, path
from tftoolkit.cli.recipe_options import options as recipe_options
from tftoolkit.cli.recipe_options import summary
from tftoolkit.trainers import recipes

_EXIT_CODES = (
    "0 done, 1 failed, 75 SIGTERM came and everything is saved: run the same again to go on, 130 interrupted: likewise"
)


def add_arguments(parser: Parser) -> None:
    """A command for each recipe."""
    names = recipes.names()
    parser.describe(
        "RECIPE ...",
        "Trains a recipe, exports the model in several formats, each of them proven, and writes report.html, all into "
        "the run folder. Run again, it goes on where it was; what is finished is not done again.",
        f"tftoolkit train {names[0]} --directory=runs/first --config.seed=1",
        f"tftoolkit train {names[0]} --help                the options of a recipe",
        exit_codes=_EXIT_CODES,
    )
    commands = parser.add_commands("recipes", "RECIPE")
    for name in names:
        about = summary(name).replace("%", "%%")
        _add_options(commands.add_parser(name, help=about), name)


def _add_options(parser: Parser, recipe: str) -> None:
    parser.describe(
        "[OPTION ...]",
        summary(recipe),
        f"tftoolkit train {recipe} --directory=runs/first --config.seed=1",
        exit_codes=_EXIT_CODES,
    )
    parser.add_argument(
        "--directory", type=path, metavar="DIR", default=f"runs/{recipe}", help="the run folder; made if there is none"
    )
    for option in recipe_options(recipe):
        text = f"{option.meaning} (default: {option.default})".replace("%", "%%")
        name = f"--config.{option.name}"
        if isinstance(option.default, bool):
            parser.add_switch(name, text)
            parser.set_defaults(**{name[2:]: option.default})
        else:
            kind = type(option.default).__name__.upper() if option.default is not None else "VALUE"
            parser.add_argument(name, metavar=kind, default=argparse.SUPPRESS, help=text)
    parser.set_defaults(run=functools.partial(_run, recipe))


def _run(recipe: str, options: argparse.Namespace) -> int:
    """Loads the recipe, applies the overrides, runs its job."""
    config = recipes.load(recipe)
    _override(config, {name: value for name, value in vars(options).items() if name.startswith("config.")})
    print("loading TensorFlow", file=sys.stderr, flush=True)
    import_tensorflow()
    from tftoolkit import jobs

    jobs.run(jobs.find(config.job)(config), Path(options.directory), recipe)
    return 0


def _override(config: ConfigDict, given: dict[str, Any]) -> None:
    """Writes ``config.x`` → text into ``config``, whose types decide how the text is read."""
    values = flags.FlagValues()
    # ml_collections looks for the overrides in sys.argv itself.
    sys.argv = ["tftoolkit", *(f"--{name}={value}" for name, value in given.items())]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True)
        values(sys.argv)
    except flags.Error as error:
        raise UsageError(str(error)) from error
