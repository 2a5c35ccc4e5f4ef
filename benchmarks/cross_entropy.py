"""fused_linear_cross_entropy with its gradients against the same in TensorFlow's operations and in PyTorch.

    python benchmarks/cross_entropy.py [--rounds 7] [--sizes 512x256x32000,2048x512x50000] [--torch /path/to/python]

Sizes are tokens x depth x classes. The alternatives run in turn, PyTorch in a process of its own, so that a busy
machine slows all alike. *product* is the library product of two 2048 x 2048 matrices in the same rounds: the rate that
three products can hope for. What they need of memory: memory.py.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import results
import tensorflow as tf
from other_process import OtherProcess

from tftoolkit import custom_ops

PRODUCT = 2048
Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def plain(labels: tf.Tensor, inputs: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    logits = tf.matmul(inputs, weight, transpose_b=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def with_gradients(loss: Loss, **options: Any) -> Callable[..., Any]:
    """(labels, inputs, weight) → the loss and its gradients."""

    @tf.function(autograph=False, **options)
    def both(labels: tf.Tensor, inputs: tf.Tensor, weight: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([inputs, weight])
            value = loss(labels, inputs, weight)
        return value, tape.gradient(value, [inputs, weight])

    return both


def tensors(tokens: int, depth: int, classes: int, dtype: str) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    weight = 0.1 * rng.standard_normal([classes, depth], np.float32)
    return [
        tf.constant(rng.integers(0, classes, tokens), tf.int32),
        tf.cast(rng.standard_normal([tokens, depth], np.float32), dtype),
        tf.cast(weight, dtype),
    ]


CANDIDATES = {
    "ours": lambda: with_gradients(custom_ops.fused_linear_cross_entropy),
    "TensorFlow, graph": lambda: with_gradients(plain),
    "TensorFlow, XLA": lambda: with_gradients(plain, jit_compile=True),
}


def seconds(run: Callable[[], Any]) -> float:
    """Of a call whose first result is a number."""
    start = time.perf_counter()
    float(tf.nest.flatten(run())[0])
    return time.perf_counter() - start


def measure(sizes: list[int], dtype: str, rounds: int, torch: OtherProcess | None) -> dict[str, list[float]]:
    given, matrix = tensors(*sizes, dtype), tf.random.normal([PRODUCT, PRODUCT])
    traced = {name: make() for name, make in CANDIDATES.items()}
    timed: dict[str, Callable[[], float]] = {
        name: lambda both=both: seconds(lambda: both(*given)) for name, both in traced.items()
    }
    timed["product"] = lambda: seconds(lambda: tf.matmul(matrix, matrix)[0, 0])
    if torch:
        timed["PyTorch"] = lambda: torch.run(*sizes, dtype)
    for run in timed.values():
        run(), run()
    found: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, run in timed.items():
            found[name].append(1e3 * run())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", default="512x256x32000,2048x512x50000,512x256x32000 bfloat16")
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(options.torch, "cross_entropy_torch.py") if options.torch else None
    times: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    for name in options.sizes.split(","):
        shape, _, dtype = name.partition(" ")
        sizes = list(map(int, shape.split("x")))
        found = measure(sizes, dtype or "float32", options.rounds, torch)
        of_products = found.pop("product")
        operations = 6 * np.prod(np.array(sizes, float))
        rates["ours", name] = [
            operations / ours / (2 * PRODUCT**3 / product)
            for product, ours in zip(of_products, found["ours"], strict=True)
        ]
        times |= {(candidate, name): values for candidate, values in found.items()}
        for candidate, values in found.items():
            ratios = [other / ours for other, ours in zip(values, found["ours"], strict=True)]
            print(
                f"{name:20s} {candidate:20s} {statistics.median(values):9.1f} ms, {statistics.median(ratios):5.2f} "
                f"({min(ratios):.2f}–{max(ratios):.2f}) of ours"
            )
        print(f"{name:20s} {statistics.median(rates['ours', name]):.2f} of the rate of a product", flush=True)
    versions = {"torch": torch.version} if torch else {}
    results.save("cross_entropy", times, "ms", where, **versions)
    results.save("cross_entropy_rate", rates, "of a product's", where)


if __name__ == "__main__":
    main()
