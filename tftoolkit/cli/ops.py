"""``tftoolkit ops list|build|check``."""

import importlib
import math
import re
from pathlib import Path

from absl import flags

from tftoolkit.cli import UsageError, import_tensorflow
from tftoolkit.custom_ops import available
from tftoolkit.custom_ops.engine import builder, library


def run(arguments: list[str]) -> int:
    """Shows the built-in ops, compiles them and the op host, or checks the ops of a library."""
    values = flags.FlagValues()
    flags.DEFINE_string("compile_commands", None, "write a compilation database to this file", flag_values=values)
    flags.DEFINE_boolean("cuda", False, "compile the CUDA kernels too, also where there is no GPU", flag_values=values)
    try:
        words = values(["tftoolkit", *arguments])[1:]
    except flags.Error as error:
        raise UsageError(f"{error}. The options are --compile_commands=FILE and --cuda") from error
    if words[:1] == ["check"]:
        if len(words) != 2:
            raise UsageError(f"ops check needs one op library, source or built-in op, got {words[1:] or 'none'}")
        return _check(words[1])
    if words not in (["list"], ["build"]):
        raise UsageError(f"ops needs 'list', 'build' or 'check', got {' '.join(words) or 'nothing'}")
    if words == ["list"]:
        _list()
        return 0
    cuda = True if values.cuda else "auto"
    recipes = [builder.host_recipe(), *(library.builtin_recipe(name, cuda=cuda) for name in library.builtin_folders())]
    if values.compile_commands:
        Path(values.compile_commands).write_text(builder.compile_commands(recipes))
    else:
        print(*builder.build_all(recipes), sep="\n")
    return 0


def _list() -> None:
    print(f"{available()}\n")
    for folder in library.builtin_folders():
        opened = library.load_builtin(folder)
        for name, schema in reversed(opened.schemas.items()):
            print(f"{opened.name}>{name}{schema}")


def _check(target: str) -> int:
    """Checks all ops of a library, source file or built-in folder; 1 if a check fails."""
    builtin = target in library.builtin_folders()
    if not builtin and not Path(target).exists():
        folders = ", ".join(library.builtin_folders())
        raise FileNotFoundError(f"no such file: {target}; it is no built-in op either, those are {folders}")
    import_tensorflow()
    from tftoolkit.custom_ops import opcheck as check
    from tftoolkit.custom_ops.opcheck import CHECKS, KERNEL_CHECKS, OpCheckError, arguments

    shape, dtype, own = None, None, None
    if builtin:
        importlib.import_module(f"tftoolkit.custom_ops.{target}")  # attaches references and gradients
        opened = library.load_builtin(target)
        cases = importlib.import_module(f"tftoolkit.custom_ops.{target}.cases")
        own = getattr(cases, "arguments", None)  # of an op that doesn't take any numbers
        # Small, since checks make odd and large inputs of it by themselves.
        shape, dtype = next((case.shape, case.dtype) for case in cases.CASES if 16 <= math.prod(case.shape) <= 256)
    else:
        opened = _open(Path(target))
    failed = False
    for name in opened.schemas:
        op = opened.op(name)
        if "CPU" not in op.handlers:
            print(f"{name} has no CPU kernel to check\n")
            continue
        inputs, attributes = own() if own else arguments.make(op, shape, dtype)
        try:
            print(check(op, *inputs, checks=CHECKS if builtin else KERNEL_CHECKS, **attributes), end="\n\n")
        except OpCheckError as error:
            print(error, end="\n\n")
            failed = True
    return int(failed)


def _open(path: Path) -> library.OpLibrary:
    stem = path.name.split(".")[0].split("-")[0]  # without the key of a cached build
    name = "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", stem))
    return library.open_library(name, path) if path.suffix == ".so" else library.load(name, [path])
