"""``tftoolkit launch``: runs a gang of workers and starts all of them again when one is lost."""

import argparse
import difflib
import shutil
import sys
from typing import Any

from tftoolkit.cli import UsageError
from tftoolkit.cli.parser import Parser, integer, path


def add_arguments(parser: Parser) -> None:
    parser.takes_program = True
    parser.describe(
        "[OPTION ...] -- PROGRAM",
        "Runs a gang of workers. When one dies or hangs, all start again from the last checkpoint. After -- comes what "
        "each worker runs: 'train RECIPE ...', 'FILE.py ...' (in this Python), or another program.",
        "tftoolkit launch --workers=2 -- train digits",
        "tftoolkit launch --hosts=node7,node9 --log_dir=logs -- my_training.py",
        exit_codes="0 done, 1 a worker failed too often, 75 stopped by SIGTERM: run the same again to go on, "
        "130 interrupted: likewise",
    )
    number: dict[str, Any] = {"type": integer(0), "metavar": "N"}
    seconds: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
    for name, default, options, meaning in (
        ("workers", 1, number, "how many on this machine, or on each host"),
        ("parameter_servers", 0, number, "how many, for asynchronous training"),
        ("hosts", (), {"type": _names, "metavar": "A,B"}, "all machines, in the same order on each of them"),
        ("host_index", None, number, "which of the hosts this is (default: as Kubernetes or Slurm says)"),
        ("port", 20000, number, "with hosts: of the first worker, the others count on"),
        ("max_restarts", 3, number, "how often in a row without a newer checkpoint"),
        ("heartbeat_timeout", 300.0, seconds, "without a heartbeat, after which a worker counts as hanging; 0: never"),
        ("start_timeout", 900.0, seconds, "the same until its first heartbeat"),
        ("grace", 60.0, seconds, "to save and leave in after SIGTERM"),
        ("backoff", 1.0, seconds, "before the first restart; doubled with each"),
        ("log_dir", None, {"type": path, "metavar": "DIR"}, "keep each worker's output there, too"),
    ):
        parser.add_argument(f"--{name}", default=default, help=meaning, **options)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the gang to its end."""
    from tftoolkit.trainers.distribution.gang import Gang, GangFailedError

    if not options.program:
        raise UsageError("launch needs a program after --, such as: tftoolkit launch --workers 2 -- train digits")
    given = {name: value for name, value in vars(options).items() if name in Gang.__dataclass_fields__}
    try:
        gang = Gang(command(options.program), **given)
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()
