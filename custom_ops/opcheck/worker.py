"""The process in which kernels run that may crash.

It reads pickled jobs (function name, arguments, settings of emulation) from standard input and answers on what was
standard output. It knows the op libraries only, never the Python module that declared references and gradients: those
arrive as graphs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.emulation import run_settings
from tftoolkit.custom_ops.engine import library, tf_host
from tftoolkit.custom_ops.opcheck.graphs import Array, Graph, as_array, runner

# Bytes in fresh outputs, bytes around inputs, the input meant (-1: all). None: no guards.
Guards = tuple[int, int, int] | None
Libraries = Sequence[tuple[str, str]]


def run(graph: Graph, arrays: Sequence[Array], guards: Sequence[Guards], jit: bool) -> list[list[Array | None]]:
    """The graph's results under each of the guard patterns."""
    function = _runner(graph, jit)
    results = []
    for guard in guards:
        with _guarded(guard):
            results.append(function(arrays))
    return results


def repeat(graph: Graph, arrays: Sequence[Array], guard: Guards, times: int, threads: int) -> list[int]:
    """How many of ``times`` runs alone, and as many from several threads at once, differ from the first, by result."""
    function = _runner(graph, False)

    def differences(count: int) -> list[int]:
        found = [0] * len(first)
        for _ in range(count):
            for i, (one, other) in enumerate(zip(first, function(arrays), strict=True)):
                found[i] += one is not None and other is not None and one.tobytes() != other.tobytes()
        return found

    with _guarded(guard), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        first = function(arrays)
        counts = [differences(times), *pool.map(differences, [times // threads] * threads)]
    return [sum(column) for column in zip(*counts, strict=True)]


@contextlib.contextmanager
def _guarded(guard: Guards) -> Iterator[None]:
    switch = tf_host._host().tk_guard
    switch(*(guard or (-1, 0, -1)))
    try:
        yield
    finally:
        switch(-1, 0, -1)


def call(name: str, path: str, op: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> None:
    """Calls an op eagerly."""
    tensors = [
        None if value is None else [tf.constant(item) for item in value] if isinstance(value, list)
        else tf.constant(value)
        for value in inputs
    ]  # fmt: skip
    library.open_library(name, path).op(op)(*tensors, **attributes)


def saved_model(path: str, arrays: Sequence[Array]) -> list[Array]:
    """Loads a SavedModel and runs its function ``check``."""
    outputs = tf.saved_model.load(path).check(*map(tf.constant, arrays))
    return [as_array(output) for output in outputs]


_JOBS: dict[str, Callable[..., Any]] = {job.__name__: job for job in (run, repeat, call, saved_model)}


def _runner(graph: Graph, jit: bool) -> Callable[[Sequence[Array]], list[Array | None]]:
    return _cached_runner(pickle.dumps(graph), jit)


@functools.lru_cache(maxsize=64)
def _cached_runner(pickled: bytes, jit: bool) -> Callable[[Sequence[Array]], list[Array | None]]:
    return runner(pickle.loads(pickled), jit)


def main() -> None:
    """Answers jobs until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what kernels print must not get between the answers
    tf.config.threading.set_intra_op_parallelism_threads(4)  # races need threads, also on a small machine
    while True:
        try:
            libraries, job, arguments, variables = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        os.lseek(2, 0, os.SEEK_SET)  # standard error is a file: what earlier jobs said is of no interest
        os.ftruncate(2, 0)
        run_settings.put(variables)
        try:
            for name, path in libraries:
                library.open_library(name, path).register()
            answer: tuple[bool, Any] = True, _JOBS[job](*arguments)
        except Exception as error:
            answer = False, (type(error).__name__, str(error))
        pickle.dump(answer, answers)
        answers.flush()
