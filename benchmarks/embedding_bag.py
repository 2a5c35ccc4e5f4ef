"""embedding_bag with its gradients against gather and segment sum, embedding_lookup_sparse, and PyTorch's EmbeddingBag.

    python benchmarks/embedding_bag.py [--rounds 11] [--rows 1000000] [--depth 64] [--bags 4096] [--ids 20]
        [--torch /path/to/python]

Sums of ids drawn evenly, from a variable; forward alone, and with the sparse gradient of half their squares (in PyTorch
``sparse=True``). *step* is a step of training with ``LazyAdam(fused=True)``: forward, gradient and update; in PyTorch
with SparseAdam. *plain step* is one without ``fused``.
The alternatives run in an order of its own in each round, PyTorch in a process of its own. Before each call both
cores multiply matrices for 20 ms: a core that slept takes milliseconds to be fast, and what ran before would decide
who waits.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import results
import tensorflow as tf
from other_process import OtherProcess

from tftoolkit import custom_ops, trainers
from tftoolkit.trainers import optimizers

Sum = Callable[[tf.Variable], tf.Tensor]
WHAT = ("forward", "both", "step", "plain step")


def sums(ids: np.ndarray, bags: int, each: int) -> dict[str, Sum]:
    """The ways to the same sums."""
    bag = np.repeat(np.arange(bags), each)
    values, borders, bag_of_each = tf.constant(ids), tf.range(0, bags * each + 1, each, tf.int64), tf.constant(bag)
    place = np.stack([bag, np.tile(np.arange(each), bags)], 1)
    sparse = tf.SparseTensor(place, ids, [bags, each])
    return {
        "ours": lambda table: custom_ops.embedding_bag(table, values, borders),
        "gather, segment_sum": lambda table: tf.math.segment_sum(tf.gather(table, values), bag_of_each),
        "embedding_lookup_sparse": lambda table: tf.nn.embedding_lookup_sparse(table, sparse, None, combiner="sum"),
    }


def programs(make_table: Callable[[], tf.Variable], sum_of: Sum) -> dict[str, Callable[[], Any]]:
    """Forward, forward and gradient, and steps of training."""
    table = make_table()

    @tf.function(autograph=False)
    def forward() -> Any:
        return sum_of(table)

    @tf.function(autograph=False)
    def both() -> Any:
        with tf.GradientTape() as tape:
            y = sum_of(table)
        return y, tape.gradient(y, table, output_gradients=y).values

    def step(fused: bool) -> Callable[[], Any]:
        update = trainers.Update([table], optimizers.LazyAdam(1e-3, fused=fused))

        @tf.function(autograph=False)
        def run() -> Any:
            with tf.GradientTape() as tape:
                y = sum_of(table)
            return y, update.apply(tape.gradient(y, [table], output_gradients=[y]))

        return run

    return {"forward": forward, "both": both, "step": step(fused=True), "plain step": step(fused=False)}


def wake(matrix: tf.Tensor) -> None:
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        tf.matmul(matrix, matrix)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()  # on the CPU a function returns when all of it is done; to look at a number would take a third of a ms
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--bags", type=int, default=4096)
    parser.add_argument("--ids", type=int, default=20, help="of each bag")
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    where = results.machine()
    sizes = (options.rows, options.depth, options.bags, options.ids)
    ids = np.random.default_rng(0).integers(0, options.rows, options.bags * options.ids)
    matrix = tf.random.normal([700, 700])
    torch = OtherProcess(options.torch, "embedding_bag_torch.py") if options.torch else None
    made = {
        name: programs(lambda: tf.Variable(tf.random.normal([options.rows, options.depth])), sum_of)
        for name, sum_of in sums(ids, options.bags, options.ids).items()
    }
    times: dict[tuple[str, str], list[float]] = {}
    for what in WHAT:
        timed: dict[str, Callable[[], float]] = {
            name: lambda run=runs[what]: seconds(run) for name, runs in made.items()
        }
        if torch and what != "plain step":
            timed["PyTorch"] = lambda what=what: torch.run(what, *sizes)
        for run in timed.values():
            run(), run()
        for number in range(options.rounds):
            for name in random.Random(number).sample(list(timed), len(timed)):
                wake(matrix)
                times.setdefault((name, what), []).append(1e3 * timed[name]())
        for name in timed:
            ratios = [other / ours for other, ours in zip(times[name, what], times["ours", what], strict=True)]
            print(
                f"{what:8s} {name:24s} {statistics.median(times[name, what]):8.2f} ms, "
                f"{statistics.median(ratios):6.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of ours",
                flush=True,
            )
    versions = {"torch": torch.version} if torch else {}
    results.save("embedding_bag", times, "ms", where, **versions)


if __name__ == "__main__":
    main()
