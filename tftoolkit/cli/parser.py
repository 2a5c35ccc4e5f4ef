"""What the commands describe and parse their arguments with: argparse, and the spellings that all of them accept."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

_MANY = 12  # options, which an error message no longer lists
_TRUE, _FALSE = ("true", "t", "1", "yes", "y"), ("false", "f", "0", "no", "n")


class UsageError(Exception):
    """The command line is wrong; the message says what to write instead."""


class Parser(argparse.ArgumentParser):
    """Arguments of a command, or of a group of them.

    Options may stand anywhere, as ``--name=value`` or ``--name value``; a value may begin with a dash.
    """

    takes_program = False
    """What follows ``--`` is another program's command line; :meth:`parse` returns it as ``program``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **options)
        self._positionals.title = "arguments"
        self.commands: Any = None

    def describe(
        self, usage: str, text: str, *examples: str, exit_codes: str = "0 done, 1 failed, 130 interrupted"
    ) -> None:
        """What the help says beside the options; ``usage`` is what may follow the command.

        Exit code 2, wrong usage, is added. To be called before :meth:`add_commands`.
        """
        self.usage = f"{self.prog} {usage}".rstrip()
        self.description = text
        shown = "\n".join(f"  {example}" for example in examples)
        codes = sorted([*exit_codes.split(", "), "2 wrong usage"], key=lambda code: int(code.split()[0]))
        self.epilog = f"example:\n{shown}\n\nexit codes: {', '.join(codes)}"

    def add_commands(self, title: str, metavar: str) -> Any:
        """Makes this a group; returns argparse's object whose ``add_parser`` makes each command."""
        self.commands = self.add_subparsers(title=title, metavar=metavar, prog=self.prog)
        return self.commands

    def add_switch(self, name: str, meaning: str) -> None:
        """``--name`` and ``--noname``, off if neither is given."""
        self.add_argument(name, f"--no{name.removeprefix('--')}", action=Switch, default=False, help=meaning)

    def find(self, arguments: Sequence[str]) -> tuple["Parser", list[str]]:
        """The parser of the command that ``arguments`` name, and the arguments without these names.

        Of a group, if they name none or an unknown one (:meth:`parse` then says so).
        """
        if self.commands is None:
            return self, list(arguments)
        for place, word in enumerate(arguments):
            if word in self.commands.choices:
                return self.commands.choices[word].find([*arguments[:place], *arguments[place + 1 :]])
            value_of_option = place > 0 and re.fullmatch(r"--?[^-=][^=]*", arguments[place - 1])
            if not (word.startswith("-") or value_of_option):
                break
        return self, list(arguments)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options and operands; ``run`` is the function that they are for.

        Raises:
            UsageError: with the nearest names, where an option or a command is unknown.
        """
        if self.commands is not None:
            self._no_command(arguments)
        own, rest = list(arguments), []
        if "--" in own:
            place = own.index("--")
            own, rest = own[:place], own[place + 1 :]
        spelled, words = self._spelled(own)
        if self.takes_program and words:
            self.error(f"{' '.join(words)} stands before --; the program comes after it")
        words += [] if self.takes_program else rest
        options, left = self.parse_known_args([*spelled, "--", *words] if words else spelled)
        if left := [word for word in left if word != "--"]:
            self.error(f"{' '.join(left)} is too much")
        if self.takes_program:
            options.program = rest
        return options

    def _spelled(self, arguments: list[str]) -> tuple[list[str], list[str]]:
        """Options, ``--name=value`` if they take one and without if they are switches; and the other words."""
        spelled, words, rest = [], [], iter(arguments)
        for argument in rest:
            written = re.fullmatch(r"--?([A-Za-z][^=]*)(=.*)?", argument, re.DOTALL)
            if written is None:
                words.append(argument)
                continue
            name, value = written.groups()
            action = self._option_string_actions.get(f"--{name}")
            if action is None:
                self._no_option(name)
            if isinstance(action, Switch):
                spelled.append(action.spelled(name, value))
                continue
            if value is None and (following := next(rest, None)) is not None:
                value = f"={following}"
            spelled.append(f"--{name}{value or ''}")
        return spelled, words

    def _no_option(self, name: str) -> NoReturn:
        known = {option.removeprefix("--").removeprefix("config."): option for option in self._option_string_actions}
        near = difflib.get_close_matches(name.removeprefix("config."), known, cutoff=0.6)
        names = [
            action.option_strings[0] for action in self._actions if action.dest != "help" and action.option_strings
        ]
        listed = f"The options are {', '.join(names)}" if names else "It has none but --help"
        if len(names) > _MANY:
            listed = f"{self.prog} --help lists the options"
        self.error(f"no option --{name}{_hint([known[option] for option in near])} {listed}")

    def _no_command(self, arguments: Sequence[str]) -> NoReturn:
        names, kind = list(self.commands.choices), self.commands.metavar
        word = next((word for word in arguments if not word.startswith("-")), None)
        if word is None:
            self.error(f"needs a {kind}, got nothing. There are: {', '.join(names)}")
        near = difflib.get_close_matches(word, names, n=3, cutoff=0.4)
        self.error(f"unknown {kind.lower()} {word!r}{_hint(near)} There are: {', '.join(names)}")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('tftoolkit ')}: {message}\nusage: {self.usage}")


class Switch(argparse.Action):
    """``--name``, ``--noname``, ``--name=false``."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])

    def spelled(self, name: str, value: str | None) -> str:
        """Without a value, which turns ``name`` on or off."""
        word = "true" if value is None else value[1:].lower()
        if word not in _TRUE + _FALSE:
            raise UsageError(f"--{name} is true or false, got {value[1:] if value else ''!r}")
        on = (f"--{name}" == self.option_strings[0]) == (word in _TRUE)
        return self.option_strings[0 if on else 1]


def path(text: str) -> str:
    """The type of arguments that name a file or a folder: shells complete them."""
    return text


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """The type of integers from ``low`` to ``high``."""

    def convert(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(
                f"must be at least {low}{f', at most {high}' if high else ''}, got {value}"
            )
        return value

    convert.__name__ = "integer"  # argparse's messages call it so
    return convert


class _Formatter(argparse.HelpFormatter):
    """Each option with its default, options as ``--name=VALUE``, texts wrapped except for lines that are indented."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return f"--[no]{action.option_strings[0][2:]}"
        if action.option_strings and action.nargs is None:
            choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
            return f"{action.option_strings[0]}={action.metavar or choices}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.dest == "help" or "(default" in text:
            return text
        shown = "no" if action.default is False else "none" if action.default in (None, [], ()) else "%(default)s"
        return f"{text} (default: {shown})"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith(" ") else textwrap.fill(line, width, initial_indent=indent)
            for line in text.splitlines()
        )


def _hint(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else "."
