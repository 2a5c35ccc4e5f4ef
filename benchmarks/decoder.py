"""A transformer of two layers, one training step: with the compiled ops and with plain operations, time and memory.

    python benchmarks/decoder.py [--rounds 7] [--dtypes float32,bfloat16]

``models.Llama`` of width 256 with 4 heads and 32,000 tokens, on 4 sequences of 512; plain_ops.py beside custom_ops.
The candidates run in turn; memory is the peak of a process of its own over what it had before the step, see memory.py.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import memory
import numpy as np
import plain_ops
import results
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models import Llama

BATCH, LENGTH, VOCABULARY, WIDTH = 4, 512, 32_000, 256
CANDIDATES = {
    "ours, graph": (custom_ops, None),
    "ours, XLA": (custom_ops, True),
    "plain, graph": (plain_ops, None),
    "plain, XLA": (plain_ops, True),
}


def training_step(candidate: str, dtype: str, length: int = LENGTH) -> Callable[[], Any]:
    """A call gives loss and gradients of one batch."""
    ops, jit = CANDIDATES[candidate]
    model = Llama(VOCABULARY, width=WIDTH, layers=2, heads=4, dtype=dtype, ops=ops)
    tokens = tf.constant(np.random.default_rng(0).integers(0, VOCABULARY, [BATCH, length + 1]), tf.int32)

    @tf.function(autograph=False, jit_compile=jit)
    def step(tokens: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        return loss, tape.gradient(loss, model.trainable_variables)

    return lambda: float(step(tokens)[0])


def milliseconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--child", nargs=2, metavar=("CANDIDATE", "DTYPE"), help="only this one's memory, in bytes")
    options = parser.parse_args()
    if options.child:
        training_step(*options.child, length=8)()
        memory.measured(training_step(*options.child))
        return
    where = results.machine()
    times: dict[tuple[str, str], list[float]] = {}
    peaks: dict[tuple[str, str], list[float]] = {}
    for dtype in options.dtypes.split(","):
        steps = {name: training_step(name, dtype) for name in CANDIDATES}
        found: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(options.rounds + 2):
            for name, step in steps.items():
                taken = milliseconds(step)
                if number >= 2:
                    found[name].append(taken)
        for name, values in found.items():
            command = [sys.executable, __file__, "--child", name, dtype]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name, f"memory, {dtype}"] = [int(done.stdout.split()[-1]) / 1e6]
            times[name, f"step, {dtype}"] = values
            ratios = [one / ours for one, ours in zip(values, found["ours, graph"], strict=True)]
            print(
                f"{dtype:10s} {name:14s} {statistics.median(values):8.1f} ms, {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}–{max(ratios):.2f}) of ours; {peaks[name, f'memory, {dtype}'][0]:.0f} MB",
                flush=True,
            )
    results.save("decoder", times, "ms", where)
    results.save("decoder", peaks, "MB", where)


if __name__ == "__main__":
    main()
