"""The command line. One module here per command, each with ``add_arguments(parser)``, which names the ``run`` function
that gets the parsed options and returns the exit code."""

import contextlib
import difflib
import importlib
import os
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TextIO

from tftoolkit import errors, startup
from tftoolkit.cli.parser import Parser, UsageError
from tftoolkit.export.report import first_line

# Command → what comes after it, and what it does. The help must fit a screen of 24 lines.
COMMANDS = {
    "train": ("RECIPE", "train, export, report; run again, it goes on where it was"),
    "new": ("NAME", "make a recipe a package of your own, to be changed"),
    "launch": ("-- PROGRAM", "several workers that start again together when one dies"),
    "runs": ("[DIR]", "list runs: how far, how good, finished or died"),
    "serve": ("DIR", "live curves of the runs in a folder, in the browser"),
    "export": ("RUN", "write another format of a run's model, proven"),
    "verify": ("FILE", "run an exported file and compare it with its model"),
    "web": ("FILE FOLDER", "make a web page in which the model runs; serve it"),
    "data": ("COMMAND", "inspect, index, write, profile: look into data"),
    "ops": ("COMMAND", "list, build, check: compiled ops"),
    "tfa": ("FILE ...", "what became of the TensorFlow Addons in a program"),
    "explain": ("[CODE]", "what an error means, by the code at its message's end"),
    "doctor": ("", "what is installed, what is missing, and how to mend it"),
    "completion": ("SHELL", "print what lets bash or zsh complete all of this"),
}
EXIT_CODES = """exit codes: 0 done, 1 failed, 2 wrong usage, 75 training was stopped by SIGTERM
and has saved (run the same again to go on), 130 interrupted (likewise)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (run again to go on).

    Where whoever read the output has gone (``tftoolkit runs | head``), it ends without a word, with code 141 as
    programs do which that signal ends. SIGTERM during training raises TrainingTerminated, a SystemExit with code 75.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # what follows is for another program
    debug = "--debug" in own
    arguments = [argument for argument in own if argument != "--debug"] + arguments[len(own) :]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's own chatter
    try:
        code = explained(lambda: run(arguments), debug)
        print(end="", flush=True)  # by Python at its end, a pipe that nobody reads would leave a traceback
        return code
    except BrokenPipeError:
        if not (unread := _unread()):
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in unread:  # takes what is still to be flushed
            os.dup2(nowhere, stream.fileno())
        return 128 + signal.SIGPIPE


def explained(call: Callable[[], int | None], debug: bool = False) -> int:
    """What ``call`` returns; of errors that users are to see, the message goes to stderr and the exit code comes back.

    Others are raised, and with ``debug`` all.
    """
    try:
        return call() or 0
    except UsageError as error:
        print(f"tftoolkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\ntftoolkit: interrupted. {interrupt}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug or not _is_expected(error) or (isinstance(error, BrokenPipeError) and _unread()):
            raise
        more = f"tftoolkit explain {error.error_code} says more; " if isinstance(error, errors.CodedError) else ""
        said = str(error)
        if _is_lack_of_memory(error):  # behind it come nodes of the graph and hints for developers
            said = f"{first_line(error)} (smaller batches need less memory)"
        print(f"tftoolkit: {type(error).__name__}: {said}\n({more}--debug shows where)", file=sys.stderr)
        return 1


def _unread() -> list[TextIO]:
    """Which of stdout and stderr go into a pipe that its reader has closed; other broken pipes are errors."""
    found = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no file: in a notebook
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                found.append(stream)
    return found


def run(arguments: Sequence[str]) -> int:
    """Runs a command, as :func:`main` does, but lets errors through.

    Raises:
        UsageError: the command line is wrong.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"unknown command {command!r}: {hint}There are: {', '.join(COMMANDS)}")
    parser, rest = parser_of(command).find(rest)
    if {"-h", "--help"} & set(rest[: rest.index("--")] if "--" in rest else rest):
        parser.print_help()
        return 0
    options = parser.parse(rest)
    return int(options.run(options))


def parser_of(command: str) -> Parser:
    """The parser of one of ``COMMANDS``."""
    parser = Parser(prog=f"tftoolkit {command}")
    importlib.import_module(f"tftoolkit.cli.{command}").add_arguments(parser)
    return parser


def _help() -> str:
    commands = [f"  {f'{name} {operands}':20}{summary}" for name, (operands, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tftoolkit COMMAND ...",
            "",
            "Write a kernel once, train at compiled speed, ship it verified to the edge.",
            "",
            *commands,
            "",
            "COMMAND --help: its options and an example. --debug: where an error came from.",
            "",
            EXIT_CODES,
        ]
    )


def import_tensorflow() -> None:
    """Imports TensorFlow without the notices it prints about itself; they are shown if it fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as notices:
        os.dup2(notices.fileno(), 2)
        try:
            startup.import_tensorflow()
            import tensorflow as tf

            tf.config.list_physical_devices()  # looks for a GPU, with notices of its own
        except BaseException:
            notices.seek(0)
            os.write(saved, notices.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _is_expected(error: Exception) -> bool:
    """Errors with a message for the user: our own types, files, values out of range, too little memory, and packages to
    be installed (Python's own ImportError names a module, ours says what to do). Others are bugs."""
    if (isinstance(error, ImportError) and error.name is None) or _is_lack_of_memory(error):
        return True
    return isinstance(error, OSError | ValueError) or type(error).__module__.startswith("tftoolkit.")


def _is_lack_of_memory(error: Exception) -> bool:
    """TensorFlow's error; it may not be imported."""
    return type(error).__name__ == "ResourceExhaustedError"
