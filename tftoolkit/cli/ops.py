"""``tftoolkit ops list|build|check``."""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tftoolkit.cli import import_tensorflow
from tftoolkit.cli.parser import Parser, path

if TYPE_CHECKING:
    from tftoolkit.custom_ops.engine import library

_Arguments = Callable[[], tuple[list[Any], dict[str, Any]]]  # inputs, attributes


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "COMMAND ...",
        "Compiled ops: which there are, and whether they keep their promises.",
        "tftoolkit ops build",
        "tftoolkit ops check my_op.cc",
    )
    commands = parser.add_commands("commands", "COMMAND")

    listing = commands.add_parser("list", help="which built-in op runs where, and the ops' schemas")
    listing.describe(
        "[OPTION ...]",
        "Shows which built-in op runs where, with the reason where it doesn't, and the schema of each.",
        "tftoolkit ops list",
    )
    listing.set_defaults(run=show)

    building = commands.add_parser("build", help="compile the built-in ops and the op host now")
    building.describe(
        "[OP ...] [OPTION ...]",
        "Compiles the op host and the built-in ops, or those that are named, into the cache, which otherwise happens "
        "on first use, and prints the files.",
        "tftoolkit ops build",
        "tftoolkit ops build rms_norm",
        "tftoolkit ops build --compile_commands=compile_commands.json",
    )
    building.add_argument("ops", nargs="*", metavar="OP", help="built-in ops; all if none is named")
    building.add_switch("--cuda", "compile the CUDA kernels, too, though there be no GPU here")
    building.add_argument(
        "--compile_commands", type=path, metavar="FILE",
        help="write a compilation database for editors there, and compile nothing",
    )  # fmt: skip
    building.set_defaults(run=build)

    checking = commands.add_parser("check", help="opcheck: do ops keep their promises")
    checking.describe(
        "LIBRARY.so|SOURCE.cc|OP [OPTION ...]",
        "Checks every op of a library: values and gradients in eager mode, graphs and XLA, shapes, races, NaN, bad "
        "input, and more. Prints a table for each.",
        "tftoolkit ops check my_op.cc",
        "tftoolkit ops check rms_norm",
        "tftoolkit ops check rms_norm --cuda=emulated",
        exit_codes="0 done, 1 a check failed, 130 interrupted",
    )
    checking.add_argument(
        "--cuda", choices=["emulated"],
        help="check the CUDA kernels instead, run thread by thread on the CPU; no GPU is needed",
    )  # fmt: skip
    checking.add_argument(
        "target", type=path, metavar="LIBRARY.so|SOURCE.cc|OP", help="a compiled library, a source file, a built-in op"
    )
    checking.set_defaults(run=check)


def build(options: argparse.Namespace) -> int:
    """Compiles the op host and the built-in ops, or writes what commands that takes."""
    from tftoolkit.custom_ops.engine import builder, library

    cuda = True if options.cuda else "auto"
    known = library.builtin_folders()
    unknown = sorted(set(options.ops) - set(known))
    if unknown:
        raise ValueError(f"{unknown[0]} is no built-in op; those are {', '.join(known)}")
    recipes = [builder.host_recipe(), *(library.builtin_recipe(name, cuda=cuda) for name in options.ops or known)]
    if options.compile_commands:
        Path(options.compile_commands).write_text(builder.compile_commands(recipes))
    else:
        print(*builder.build_all(recipes), sep="\n")
    return 0


def show(options: argparse.Namespace) -> int:
    """Prints the table and the schemas."""
    from tftoolkit.custom_ops import available
    from tftoolkit.custom_ops.engine import library

    print(f"{available()}\n")
    for folder in library.builtin_folders():
        opened = library.load_builtin(folder)
        for name, schema in reversed(opened.schemas.items()):
            print(f"{opened.name}>{name}{schema}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Checks all ops of a library, source file or built-in folder; 1 if a check fails."""
    from tftoolkit.custom_ops.engine import library

    target = options.target
    builtin = target in library.builtin_folders()
    if not builtin and not Path(target).exists():
        folders = ", ".join(library.builtin_folders())
        raise FileNotFoundError(f"no such file: {target}; it is no built-in op either, those are {folders}")
    import_tensorflow()
    from tftoolkit.custom_ops import emulation, opcheck
    from tftoolkit.custom_ops.opcheck import CHECKS, KERNEL_CHECKS, OpCheckError, arguments, table

    device = options.cuda
    if builtin and device and not library.has_cuda(target):
        raise ValueError(f"{target} has no CUDA kernel to emulate")
    shape, dtype, cases = None, None, None
    if builtin:
        importlib.import_module(f"tftoolkit.custom_ops.{target}")  # attaches references and gradients
        opened = library.load_builtin(target)
        if importlib.util.find_spec(f"tftoolkit.custom_ops.{target}.cases"):
            cases = importlib.import_module(f"tftoolkit.custom_ops.{target}.cases")
            # Small, since checks make odd and large inputs of it by themselves.
            shape, dtype = next((case.shape, case.dtype) for case in cases.CASES if 16 <= math.prod(case.shape) <= 256)
    else:
        opened = _open(Path(target), device)
    own = getattr(cases, "arguments", None)  # of an op that doesn't take any numbers
    by_op: Mapping[str, _Arguments] = getattr(cases, "ARGUMENTS", {})  # where there are several
    failed = False
    for name in opened.schemas:
        op = opened.op(name)
        if device:
            if not emulation.has_kernel(op):
                print(f"{name} has no CUDA kernel to check\n")
                continue
            op = emulation.twin(op)
        if "CPU" not in op.handlers:
            print(f"{name} has no CPU kernel to check\n")
            continue
        own_of_op = by_op.get(name, own)
        inputs, attributes = own_of_op() if own_of_op else arguments.make(op, shape, dtype)
        try:
            print(opcheck(op, *inputs, checks=CHECKS if builtin else KERNEL_CHECKS, **attributes), end="\n\n")
        except OpCheckError as error:
            print(error, end="\n\n")
            failed = True
        call_of = getattr(cases, "call_of", None)
        if cases and device and (call_of or not own):
            result = table.check_cases(op, cases.CASES, call_of=call_of)
            print(f"{name}, all of its cases: {result.verdict}, {result.seen}\n")
            failed |= result.verdict == "FAILED"
    return int(failed)


def _open(path: Path, device: str | None) -> library.OpLibrary:
    from tftoolkit.custom_ops.engine import library

    stem = path.name.split(".")[0].split("-")[0]  # without the key of a cached build
    name = "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", stem))
    if path.suffix == ".so":
        return library.open_library(name, path)
    # The schemas may stand in the one file and the CUDA kernels in the other.
    sources = [path, *(other for other in map(path.with_suffix, (".cc", ".cu")) if other != path and other.exists())]
    return library.load(name, sources, cuda=device) if device else library.load(name, [path])
