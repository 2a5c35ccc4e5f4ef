"""Runs the kernels of the built-in ops, and the headers that ops include, under the compiler's sanitizers.

    python tools/sanitize/run.py [--calls 25] [--seed 0]

AddressSanitizer with UndefinedBehaviorSanitizer and ThreadSanitizer, compiled for AVX2 where this machine has it; the
first runs a second time with the kernels that are blocked for the baseline machine. ``driver.cc`` is the host, so
neither Python nor TensorFlow runs under them (for that: ``host.py``); TensorFlow or JAX must be installed for the FFI
headers. Calls come from each op's cases.py and, at random, from its schema. Ends with an error on the first report.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from tftoolkit.custom_ops.engine import builder, library, sampling, toolchain  # noqa: E402
from tftoolkit.custom_ops.engine.schema import DTYPES, Argument, Attribute, presence  # noqa: E402
from tftoolkit.custom_ops.engine.schema_parser import parse  # noqa: E402
from tftoolkit.custom_ops.engine.shapes import Shape  # noqa: E402

# XLA_FFI_DataType and bytes, by the schema's names.
FFI_TYPES = {
    "bool": (1, 1), "i8": (2, 1), "i16": (3, 2), "i32": (4, 4), "i64": (5, 8), "u8": (6, 1), "u16": (7, 2),
    "u32": (8, 4), "u64": (9, 8), "f16": (10, 2), "bf16": (16, 2), "f32": (11, 4), "f64": (12, 8), "c64": (15, 8),
    "c128": (18, 16),
}  # fmt: skip
# Unoptimised code that is checked at each step compiles five times as fast as optimised one, and computes what it says.
SANITIZERS = {
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-fsanitize=thread"],
}
PROGRAM = (HERE / "driver.cc", HERE / "float_types.cc")
FLAGS = [flag for flag in builder.CFLAGS if flag not in ("-O3", "-fPIC")] + ["-g1", "-fno-omit-frame-pointer"]


def command(flags: Sequence[str]) -> list[str]:
    include = [f"-I{toolchain.INCLUDE_DIR}", "-isystem", str(toolchain.ffi_include_dir())]
    return [*toolchain.cxx().command, *flags, *include]


def compile_programs(folder: Path, sources: Sequence[Path], flags: dict[str, list[str]]) -> dict[str, Path]:
    """One program for each name in ``flags``; all their files are compiled side by side."""
    heads = {name: precompiled(folder / f"{name}.h", own) for name, own in flags.items()}

    def compile_one(job: tuple[str, Path]) -> Path:
        name, source = job
        output = folder / f"{name}-{source.parent.name}-{source.stem}.o"
        head = ["-include", str(heads[name])]
        subprocess.run([*command(flags[name]), *head, "-c", str(source), "-o", str(output)], check=True)
        return output

    largest_first = sorted(sources, key=lambda source: -sum(path.stat().st_size for path in source.parent.glob("*.h")))
    jobs = [(name, source) for source in largest_first for name in flags]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    for name in flags:
        own = [str(path) for (of, _), path in zip(jobs, objects, strict=True) if of == name]
        subprocess.run([*command(flags[name]), *own, "-pthread", "-o", str(folder / name)], check=True)
    return {name: folder / name for name in flags}


def precompiled(header: Path, flags: Sequence[str]) -> Path:
    """What all files include first: reading it is a quarter of compiling a small op."""
    header.write_text('#include "tftoolkit/op.h"\n')
    subprocess.run([*command(flags), "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)
    return header


def check_all_floats(folder: Path, has_avx2: bool) -> None:
    # With the machine's own conversion all floats take seconds, in software half a minute for every hundredth.
    fast, stride = (["-march=x86-64-v3"], "1") if has_avx2 else ([], "101")
    programs = compile_programs(folder, PROGRAM, {"floats": ["-std=c++17", "-O3", *fast]})
    subprocess.run([programs["floats"], "floats", stride], check=True)


def check_ops(name: str, calls: str, program: Path, isa: str = "") -> None:
    started = time.monotonic()
    # ThreadSanitizer knows fixed memory layouts only.
    prefix = ["setarch", "--addr-no-randomize"] if name == "thread" else []
    environment = os.environ | {
        "TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1", "TFTOOLKIT_ISA": isa,
    }  # fmt: skip
    subprocess.run([*prefix, program], input=calls, text=True, check=True, env=environment)
    print(f"{name} {isa}".rstrip() + f": clean, {time.monotonic() - started:.0f} s", flush=True)


def all_calls(listing: str, count: int, seed: int, blocked: bool = False) -> Iterator[str]:
    """Lines for the driver. ``blocked``: only of ops with a kernel for each instruction set."""
    for line in listing.splitlines():
        name, text, source = line.split("\t")
        if blocked and '"tftoolkit/isa.h"' not in Path(source).read_text():
            continue
        schema = parse(text)
        rng = random.Random(f"{seed} {name}")
        calls = [sampling.sample(schema, rng) for _ in range(count)]
        for case in cases_of(Path(source).parent):
            try:
                call = with_case(calls[0], case)
            except ValueError:
                continue  # it is one of another op of the folder
            dtype = {long: short for short, long in DTYPES.items()}[case.dtype]
            dtypes = {name: dtype if dtype in choices else choices[0] for name, choices in schema.dtype_vars.items()}
            calls.append(replace(call, dtypes=dtypes))
        for call in calls:
            try:
                yield " ".join([name, *words(call)])
            except ValueError:
                continue  # attributes and shapes that no output fits


def with_case(call: sampling.Call, case: Any) -> sampling.Call:
    if call.schema.has_lists:
        return with_lists(call, case.shapes)
    fitting = replace(call, attributes={**call.attributes, **getattr(case, "attributes", {})})
    return sampling.resized(fitting, case.shape, getattr(case, "dims", None))


def with_lists(call: sampling.Call, shapes: Sequence[Shape]) -> sampling.Call:
    """The call with tensors of these shapes in every list, and as many numbers in every attribute that is a list."""
    schema = call.schema
    inputs = tuple(
        list(shapes) if argument.variadic else given for argument, given in zip(schema.inputs, call.inputs, strict=True)
    )
    numbers = {attribute.name: (0.5,) * len(shapes) for attribute in schema.attributes if attribute.type == "f32[]"}
    return replace(call, inputs=inputs, attributes={**call.attributes, **numbers})


def cases_of(folder: Path) -> Sequence[Any]:
    """The case table of an op folder."""
    path = folder / "cases.py"
    return runpy.run_path(str(path))["CASES"] if path.exists() else ()


def words(call: sampling.Call) -> Iterator[str]:
    """The call as driver.cc reads it. Raises ValueError when the outputs would be impossible."""
    schema = call.schema
    values: dict[str, object] = dict(call.attributes)
    for argument, shape in zip(schema.inputs, call.inputs, strict=True):
        if argument.optional:
            values[presence(argument)] = shape is not None
    hidden = [Attribute(presence(argument), "bool") for argument in schema.optional_inputs]
    attributes = sorted(
        [*(item for item in schema.attributes if not item.choices), *hidden], key=lambda attribute: attribute.name
    )
    yield str(len(attributes))
    for attribute in attributes:
        value = values[attribute.name]
        items = value if isinstance(value, tuple) else (value,)
        yield f"{attribute.name} {attribute.type} {len(items)}"
        yield from (encode(item) for item in items)
    flat_inputs: list[tuple[str, Shape]] = []
    first: dict[str, int] = {}
    for argument, shape in zip(schema.inputs, call.inputs, strict=True):
        first[argument.name] = len(flat_inputs)
        flat_inputs += flat(call, argument, (0,) if shape is None else shape)
    yield str(len(flat_inputs))
    yield from (buffer(dtype, shape, -1) for dtype, shape in flat_inputs)
    outputs = [
        buffer(dtype, shape, first[argument.alias] + place if argument.alias else -1)
        for argument, shapes in zip(schema.outputs, call.outputs(), strict=True)
        for place, (dtype, shape) in enumerate(flat(call, argument, shapes))
    ]
    yield str(len(outputs))
    yield from outputs


def flat(call: sampling.Call, argument: Argument, shapes: Shape | list[Shape]) -> list[tuple[str, Shape]]:
    return [(call.dtype(argument), shape) for shape in (shapes if isinstance(shapes, list) else [shapes])]


def encode(value: object) -> str:
    if isinstance(value, str):
        return "x" + value.encode().hex()
    return str(int(value)) if isinstance(value, bool) else repr(value)


def buffer(dtype: str, shape: Shape, alias: int) -> str:
    return " ".join(map(str, [*FFI_TYPES[dtype], alias, len(shape), *shape]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=25, help="random calls of each op")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    has_avx2 = " avx2 " in Path("/proc/cpuinfo").read_text()
    machine = ["-march=x86-64-v3"] if has_avx2 else []
    flags = {name: [*FLAGS, *machine, *own] for name, own in SANITIZERS.items()}
    sources = [*PROGRAM]
    for op in library.builtin_folders():
        sources += sorted((ROOT / "custom_ops" / op).glob("*.cc"))
    try:
        with tempfile.TemporaryDirectory(prefix="tftoolkit-sanitize-") as temporary:
            folder = Path(temporary)
            programs = compile_programs(folder, sources, flags)
            print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
            listing = subprocess.run(
                [programs["address"], "list"], check=True, text=True, stdout=subprocess.PIPE
            ).stdout
            calls, blocked = (
                "\n".join(all_calls(listing, options.calls, options.seed, only)) + "\n" for only in (False, True)
            )
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                runs = [("thread", calls, ""), ("address", calls, ""), ("address", blocked, "baseline")]
                checks = [pool.submit(check_ops, name, given, programs[name], isa) for name, given, isa in runs]
                checks.append(pool.submit(check_all_floats, folder, has_avx2))
                for done in checks:
                    done.result()
            subprocess.run([programs["address"], "floats", "4099"], check=True)
    except subprocess.CalledProcessError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"all clean in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
