"""``tftoolkit completion bash|zsh``."""

import argparse
import importlib
import re
from typing import Any

from tftoolkit.cli import COMMANDS
from tftoolkit.cli.parser import Parser, path

# shtab's scripts know "--name value" only.
_BASH_EQUALS = """
# "--name=value" is three words for bash; these are made two.
_tftoolkit() {
  local -a words=()
  local word last=${COMP_WORDS[COMP_CWORD]}
  for word in "${COMP_WORDS[@]:0:COMP_CWORD}"; do
    [[ $word == "=" ]] || words+=("$word")
  done
  [[ $last != "=" ]] || last=""
  local -a COMP_WORDS=("${words[@]}" "$last")
  local COMP_CWORD=${#words[@]}
  _shtab_tftoolkit
}
complete -o bashdefault -F _tftoolkit tftoolkit
"""


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "bash|zsh",
        "Prints a script that lets the shell complete commands, options, recipes, choices and file names. It is as new "
        "as this version: put the example's line into ~/.bashrc, or, below compinit, into ~/.zshrc with zsh for bash.",
        'eval "$(tftoolkit completion bash)"',
        exit_codes="0 done, 1 failed",
    )
    parser.add_argument("shell", choices=("bash", "zsh"), metavar="SHELL", help="bash or zsh")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the script."""
    import shtab

    root = Parser(prog="tftoolkit")
    root.add_switch("--debug", "show where an error came from")
    commands = root.add_commands("commands", "COMMAND")
    for name, (_, summary) in COMMANDS.items():
        importlib.import_module(f"tftoolkit.cli.{name}").add_arguments(commands.add_parser(name, help=summary))
    _complete_paths(root, shtab.FILE)
    script = shtab.complete(root, options.shell)
    if options.shell == "bash":
        script += _BASH_EQUALS
    else:
        script = re.sub(r"(--[\w.]+)\[(?=.*\]:)", r"\1=[", script)
    print(script)
    return 0


def _complete_paths(parser: Parser, files: Any) -> None:
    for action in parser._actions:
        if action.type is path:
            action.complete = files  # type: ignore[attr-defined]
    for command in parser.commands.choices.values() if parser.commands else ():
        _complete_paths(command, files)
