"""``tftoolkit launch``: runs a gang of workers and starts all of them again when one is lost."""

import difflib
import shutil
import sys

from absl import flags

from tftoolkit.cli import UsageError


def run(arguments: list[str]) -> int:
    """``[OPTIONS] -- COMMAND ...``"""
    from tftoolkit.trainers.distribution.gang import Gang, GangFailedError

    place = arguments.index("--") if "--" in arguments else len(arguments)
    program = arguments[place + 1 :]
    values, words = _parse(arguments[:place])
    if not program:
        raise UsageError("launch needs a command after --, such as: tftoolkit launch --workers 2 -- train digits")
    if words:
        raise UsageError(f"launch: {' '.join(words)} stands before --; a worker's command comes after it")
    options = {name: values[name].value for name in values if name in Gang.__dataclass_fields__}
    try:
        gang = Gang(command(program), **options)
    except ValueError as error:
        raise UsageError(f"launch: {error}") from error
    try:
        return gang.run()
    except GangFailedError as error:
        print(f"tftoolkit launch: {error}", file=sys.stderr)
        return error.exit_code


def command(words: list[str]) -> list[str]:
    """What to execute: ``train ...`` is tftoolkit's, ``FILE.py ...`` runs in this Python, others are programs.

    Raises:
        UsageError: there is no such program.
    """
    first = words[0]
    if first == "train":
        return [sys.executable, "-m", "tftoolkit", *words]
    if first.endswith(".py"):
        return [sys.executable, *words]
    if shutil.which(first) is None:
        hint = "; did you mean train?" if difflib.get_close_matches(first, ["train"]) else "."
        raise UsageError(
            f"launch: {first!r} is no program{hint} After -- comes 'train RECIPE ...', 'FILE.py ...' or a program"
        )
    return words


def _parse(options: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The options, and words that are none."""
    values = flags.FlagValues()
    flags.DEFINE_integer("workers", 1, "how many on this machine, or on each host", flag_values=values)
    flags.DEFINE_integer("parameter_servers", 0, "how many, for asynchronous training", flag_values=values)
    flags.DEFINE_list("hosts", [], "all machines, in the same order on each of them", flag_values=values)
    flags.DEFINE_integer("host_index", None, "which of the hosts this is", flag_values=values)
    flags.DEFINE_integer("port", 20000, "with hosts: of the first worker, the others count on", flag_values=values)
    flags.DEFINE_integer("max_restarts", 3, "in a row without a newer checkpoint", flag_values=values)
    flags.DEFINE_float("heartbeat_timeout", 300.0, "seconds without a heartbeat; 0: for ever", flag_values=values)
    flags.DEFINE_float("start_timeout", 900.0, "seconds until the first heartbeat", flag_values=values)
    flags.DEFINE_float("grace", 60.0, "seconds to save and leave in after SIGTERM", flag_values=values)
    flags.DEFINE_float("backoff", 1.0, "seconds before the first restart; doubled with each", flag_values=values)
    flags.DEFINE_string("log_dir", None, "keep each worker's output there, too", flag_values=values)
    names = ", ".join(f"--{name}" for name in values)
    try:
        return values, values(["tftoolkit", *options])[1:]
    except flags.Error as error:
        raise UsageError(f"launch: {error}. The options are {names}") from error
