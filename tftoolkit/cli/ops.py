"""``tftoolkit ops list|build``."""

from pathlib import Path

from absl import flags

from tftoolkit.cli import UsageError
from tftoolkit.custom_ops import builder, library


def run(arguments: list[str]) -> int:
    """Shows the built-in ops, or compiles them and the op host."""
    values = flags.FlagValues()
    flags.DEFINE_string("compile_commands", None, "write a compilation database to this file", flag_values=values)
    try:
        words = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. The only option is --compile_commands=FILE") from error
    if words not in (["list"], ["build"]):
        raise UsageError(f"ops needs 'list' or 'build', got {' '.join(words) or 'nothing'}")
    if words == ["list"]:
        _list()
    elif values.compile_commands:
        recipes = [builder.host_recipe(), *map(library.builtin_recipe, library.builtin_folders())]
        Path(values.compile_commands).write_text(builder.compile_commands(recipes))
    else:
        for recipe in [builder.host_recipe(), *map(library.builtin_recipe, library.builtin_folders())]:
            print(builder.build(recipe))
    return 0


def _list() -> None:
    for folder in library.builtin_folders():
        opened = library.load_builtin(folder)
        for name, schema in opened.schemas.items():
            print(f"{opened.name}>{name}{schema}  [{', '.join(sorted(opened.handlers[name])) or 'no kernel'}]")
