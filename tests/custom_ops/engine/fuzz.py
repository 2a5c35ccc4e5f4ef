"""Fuzzes built-in ops: random calls, right and wrong, must give the right answer or a clear error. Run by test_fuzz.py.

    python fuzz.py SUBJECT ... --seed 0 --cases 3000    # SUBJECT: a built-in op such as RmsNorm, or ReadRecords
    python fuzz.py SUBJECT --seed 0 --case 1234         # that one again

Case i depends on the subject, the seed and i alone. Before each case its subject and number go to the file
``--progress``, so that whoever started this process knows which case crashed or hung it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import gc
import itertools
import os
import random
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from fuzz_ops import CLEAR, OpSubject, WrongError, as_list
from fuzz_records import RecordsSubject

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library, sampling
from tftoolkit.custom_ops.engine.ops import Op

MEMORY = 3 << 30  # bytes that a case may take
_NOTICED = 2 << 20  # bytes of growth that are looked at once more


def subjects() -> dict[str, Callable[[], Any]]:
    """Every op of every built-in folder, and the record reader."""
    found: dict[str, Callable[[], Any]] = {"ReadRecords": RecordsSubject}
    for folder in library.builtin_folders():
        module = library.load_builtin(folder)
        getattr(custom_ops, folder)  # gives the ops their references
        found |= {name: functools.partial(OpSubject, module.op(name)) for name in module.schemas}
    return found


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def run_case(subject: Any, name: str, seed: int, number: int) -> None:
    try:
        subject.case(random.Random(f"{name} {seed} {number}"))
    except Exception as error:
        error.add_note(f"again: python {__file__} {name} --seed {seed} --case {number}")
        raise


def leaked_bytes(subject: Any, name: str, seed: int, calls: int) -> int:
    """How much memory the same cases take when they run again and again, this many calls in all.

    Allocators and pools of threads still grow now and then: what has grown once must grow again to be a leak.
    """

    def growth(passes: int) -> int:
        before = resident_bytes()
        for number in itertools.chain.from_iterable([range(calls // 4)] * passes):
            run_case(subject, name, seed, number)
        return resident_bytes() - before

    growth(2)  # caches are filled
    first = growth(4)
    return first if first < _NOTICED else min(first, growth(4))


def check_threads(seed: int) -> None:
    """Right calls from many threads and graphs at once give what they give alone."""
    rng = random.Random(seed)
    alone: list[tuple[list[Callable[..., Any]], list[Any], list[bytes]]] = []
    for name, make in subjects().items():
        subject = make()
        if name == "ReadRecords":
            order = [rng.randrange(40) for _ in range(30)]
            inputs = [
                tf.constant(subject.path),
                tf.constant(subject.offsets[order]),
                tf.constant(subject.lengths[order]),
            ]
            functions: list[Callable[..., Any]] = [custom_ops.read_records, tf.function(custom_ops.read_records)]
            alone.append((functions, inputs, [repr(custom_ops.read_records(*inputs).numpy().tolist()).encode()]))
            keep = subject  # its files
            continue
        if subject.schema.has_lists or subject.schema.optional_inputs:
            continue
        sizes = (1, 3, 64) if name == "RandAugment" else (7, 64, 257)  # 1 and 3 are what it takes as channels
        for _ in range(3):
            call = sampling.sample(subject.schema, rng, sizes=sizes, max_elements=200_000)
            inputs = [tf.convert_to_tensor(array) for array in subject.arrays(rng, call)]

            def run(*inputs: Any, op: Op = subject.op, attributes: Any = call.attributes) -> Any:
                return as_list(op(*inputs, **attributes))

            functions = [run, tf.function(run, autograph=False), tf.function(run, autograph=False)]
            jitted = tf.function(run, autograph=False, jit_compile=True)
            for one in (functions, [jitted]):
                try:
                    expected = [output.numpy().tobytes() for output in one[0](*inputs)]
                except CLEAR:
                    if subject.may_fail is False:
                        raise
                    continue
                alone.append((one, inputs, expected))

    def repeat(number: int) -> None:
        order = random.Random(number)
        for _ in range(60):
            functions, inputs, expected = order.choice(alone)
            outputs = as_list(order.choice(functions)(*inputs))
            strings = outputs[0].dtype == tf.string
            found = [repr(o.numpy().tolist()).encode() if strings else o.numpy().tobytes() for o in outputs]
            if found != expected:
                raise WrongError(f"thread {number} got something else than a call alone, from {functions}")

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in pool.map(repeat, range(24)):
            pass
    del keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="+", help="names of ops, or 'threads'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--case", type=int, help="only this one")
    parser.add_argument("--progress", type=Path, help="file for the subject and number of the case that runs")
    parser.add_argument("--leaks", type=int, help="print for each subject how many bytes so many repeated calls leak")
    options = parser.parse_args()
    if options.subjects == ["threads"]:
        check_threads(options.seed)
        return
    makers = subjects()
    limit_memory()
    progress = os.open(options.progress or os.devnull, os.O_WRONLY | os.O_CREAT)
    for name in options.subjects:
        subject = makers[name]()
        for number in range(options.cases) if options.case is None else [options.case]:
            os.pwrite(progress, f"{name} --case={number}".ljust(80).encode(), 0)
            run_case(subject, name, options.seed, number)
        if isinstance(subject, OpSubject):
            subject.finish()
        if options.leaks:
            print(name, leaked_bytes(subject, name, options.seed, options.leaks), flush=True)


if __name__ == "__main__":
    sys.exit(main())
