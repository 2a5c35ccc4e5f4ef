"""``tftoolkit train RECIPE``."""

import difflib
import importlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from tftoolkit.cli import UsageError, import_tensorflow


def run(arguments: list[str]) -> int:
    """Loads the recipe, applies the overrides, runs its job."""
    from tftoolkit.trainers import recipes

    names = [argument for argument in arguments if not argument.startswith("-")]
    if len(names) != 1:
        raise UsageError(f"train needs one recipe, got {names or 'none'}. There are: {', '.join(recipes.names())}")
    (name,) = names
    config = recipes.load(name)
    directory = _parse(config, name, [argument for argument in arguments if argument != name])
    import_tensorflow()
    importlib.import_module(f"tftoolkit.jobs.{config.job}").run(config, directory)
    return 0


def _parse(config: ConfigDict, name: str, options: list[str]) -> Path:
    """Writes ``--config.x=y`` into ``config`` and returns the run folder."""
    for option in options:
        _check_option(config, name, option)
    values = flags.FlagValues()
    flags.DEFINE_string("directory", f"runs/{name}", "the run folder", flag_values=values)
    # ml_collections looks for the overrides in sys.argv itself.
    sys.argv = ["tftoolkit", *options]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=True)
        values(sys.argv)
    except flags.Error as error:
        raise UsageError(f"{error} (the options are --directory=DIR and --config.OPTION=VALUE)") from error
    return Path(values.directory)


def _check_option(config: ConfigDict, recipe: str, option: str) -> None:
    """Raises UsageError with the nearest names where ``--config.a.b=...`` names nothing."""
    if not option.startswith("--config."):
        return
    level = config
    for part in option.removeprefix("--config.").partition("=")[0].split("."):
        if not isinstance(level, ConfigDict) or part not in level:
            known = list(level) if isinstance(level, ConfigDict) else []
            near = difflib.get_close_matches(part, known, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else ";"
            raise UsageError(
                f"recipe {recipe} has no option {part!r}{hint} There are: {', '.join(known) or 'none below'}"
            )
        level = level[part]
