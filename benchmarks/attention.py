"""flash_attention forward and backward against the same in TensorFlow's operations (graph and XLA) and in PyTorch.

    python benchmarks/attention.py [--rounds 7] [--lengths 512,1024,2048,4096] [--torch /path/to/python]

One sequence of 8 heads of 64. The alternatives run in turn, PyTorch's scaled_dot_product_attention in a process of its
own, so that a busy machine slows all alike. *product* is the library product of two 2048 x 2048 matrices in the same
rounds: the rate that attention, which is made of products, can hope for. The plain computation holds all scores, 2 GB
and more from a length of 4096 on, and is left out there.
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

HEADS, DEPTH, PLAIN_UP_TO, PRODUCT = 8, 64, 2048, 2048


def plain(causal: bool) -> Callable[..., tf.Tensor]:
    def attend(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        scores = tf.einsum("bqhd,bkhd->bhqk", q * DEPTH**-0.5, k)
        if causal:
            mask = tf.linalg.band_part(tf.ones(tf.shape(scores)[2:], tf.bool), -1, 0)
            scores = tf.where(mask, scores, tf.constant(-np.inf, scores.dtype))
        return tf.einsum("bhqk,bkhd->bqhd", tf.nn.softmax(scores), v)

    return attend


def with_gradients(candidate: str, causal: bool = True) -> Callable[..., Any]:
    """(q, k, v, gradient of the output) → the gradients of q, k and v, by the candidate of this name."""

    def ours(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return custom_ops.flash_attention(q, k, v, causal=causal)

    attend = ours if candidate == "ours" else plain(causal)

    @tf.function(autograph=False, jit_compile=candidate == "TensorFlow, XLA" or None)
    def both(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, d_o: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([q, k, v])
            o = attend(q, k, v)
        return tape.gradient(o, [q, k, v], output_gradients=d_o)

    return both


def timed(candidate: str, causal: bool, tensors: list[tf.Tensor]) -> Callable[[], float]:
    """Seconds of one forward and backward pass."""
    both = with_gradients(candidate, causal)

    def run() -> float:
        start = time.perf_counter()
        found = both(*tensors)
        found[0][0, 0, 0, 0].numpy()  # waits
        return time.perf_counter() - start

    return run


def product_seconds() -> Callable[[], float]:
    matrix = tf.random.normal([PRODUCT, PRODUCT])

    def run() -> float:
        start = time.perf_counter()
        tf.matmul(matrix, matrix)[0, 0].numpy()
        return time.perf_counter() - start

    return run


def measure(length: int, causal: bool, dtype: str, rounds: int, torch: OtherProcess | None) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    tensors = [tf.cast(rng.standard_normal([1, length, HEADS, DEPTH]), dtype) for _ in range(4)]
    names = ["ours", *(["TensorFlow, graph", "TensorFlow, XLA"] if length <= PLAIN_UP_TO else [])]
    candidates: dict[str, Callable[[], float]] = {name: timed(name, causal, tensors) for name in names}
    candidates["product"] = product_seconds()
    if torch:
        candidates["PyTorch"] = lambda: torch.run(length, causal, dtype)
    for run in candidates.values():
        run(), run()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            found[name].append(1e3 * run())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(options.torch, "attention_torch.py") if options.torch else None
    times: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    work = [(int(length), causal, "float32") for length in options.lengths.split(",") for causal in (True, False)]
    for length, causal, dtype in [*work, (1024, True, "bfloat16")]:
        found = measure(length, causal, dtype, options.rounds, torch)
        name = f"{length}, {'causal' if causal else 'full'}, {dtype}"
        of_products = found.pop("product")
        times |= {(candidate, name): values for candidate, values in found.items()}
        operations = 14 * length * length * HEADS * DEPTH * (0.5 if causal else 1)
        rates["ours", name] = [
            operations / ours / (2 * PRODUCT**3 / product)
            for product, ours in zip(of_products, found["ours"], strict=True)
        ]
        show(name, found, rates["ours", name])
    versions = {"torch": torch.version} if torch else {}
    results.save("attention", times, "ms", where, **versions)
    results.save("attention_rate", rates, "of a product's", where)


def show(name: str, times: dict[str, list[float]], rates: list[float]) -> None:
    for candidate, values in times.items():
        ratios = [other / ours for other, ours in zip(values, times["ours"], strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(
            f"{name:24s} {candidate:20s} {statistics.median(values):9.2f} ms, {statistics.median(ratios):5.2f}", end=""
        )
        print(f" ({spread}) of ours", flush=True)
    print(f"{name:24s} {statistics.median(rates):.2f} of the rate of a product")


if __name__ == "__main__":
    main()
