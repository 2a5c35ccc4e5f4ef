"""crf_log_likelihood with its gradients against the recursion by tf.scan; crf_decode and crf_marginals beside it.

    python benchmarks/crf.py [--rounds 11] [--sizes 32x100x16,16x500x50]

Sizes are batch x time x states. Loss and gradients by logits and transitions, in graphs; the alternatives run in turn,
so that a busy machine slows all alike. The scan is not compiled by XLA, which takes longer still.
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

from tftoolkit import custom_ops

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def by_scan(tags: tf.Tensor, lengths: tf.Tensor) -> Loss:
    """The log-likelihood as TensorFlow Addons had it: alpha step by step, with all pairs of states."""

    def likelihood(logits: tf.Tensor, transitions: tf.Tensor) -> tf.Tensor:
        time_major, mask = tf.transpose(logits, [1, 0, 2]), tf.transpose(tf.sequence_mask(lengths, logits.shape[1]))

        def step(alpha: tf.Tensor, given: Any) -> tf.Tensor:
            here, inside = given
            return tf.where(inside[:, None], here + tf.reduce_logsumexp(alpha[:, :, None] + transitions, 1), alpha)

        alpha = tf.scan(step, (time_major[1:], mask[1:]), time_major[0])[-1]
        inside = tf.sequence_mask(lengths, logits.shape[1], logits.dtype)
        own = tf.gather(logits, tags, batch_dims=2) * inside
        pairs = tf.gather_nd(transitions, tf.stack([tags[:, :-1], tags[:, 1:]], -1)) * inside[:, 1:]
        return tf.reduce_sum(own, 1) + tf.reduce_sum(pairs, 1) - tf.reduce_logsumexp(alpha, 1)

    return likelihood


def with_gradients(likelihood: Loss) -> Callable[..., Any]:
    @tf.function(autograph=False)
    def both(logits: tf.Tensor, transitions: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([logits, transitions])
            loss = -tf.reduce_mean(likelihood(logits, transitions))
        return loss, tape.gradient(loss, [logits, transitions])

    return both


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    _ = tf.nest.flatten(run())[0].numpy()
    return time.perf_counter() - start


def measure(batch: int, length: int, states: int, rounds: int) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    logits = tf.constant(rng.standard_normal((batch, length, states)), tf.float32)
    transitions = tf.constant(rng.standard_normal((states, states)), tf.float32)
    tags = tf.constant(rng.integers(0, states, (batch, length)), tf.int32)
    lengths = tf.constant(rng.integers(length // 2, length + 1, batch), tf.int32)
    traced = {
        "ours": with_gradients(lambda x, a: custom_ops.crf_log_likelihood(x, tags, lengths, a)),
        "tf.scan": with_gradients(by_scan(tags, lengths)),
        "crf_decode": tf.function(lambda x, a: custom_ops.crf_decode(x, lengths, a)),
        "crf_marginals": tf.function(lambda x, a: custom_ops.crf_marginals(x, lengths, a)),
    }
    one, other = (float(traced[name](logits, transitions)[0]) for name in ("ours", "tf.scan"))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    found: dict[str, list[float]] = {name: [] for name in traced}
    for round_number in range(rounds + 1):
        for name, run in traced.items():
            taken = 1e3 * seconds(lambda run=run: run(logits, transitions))
            if round_number:
                found[name].append(taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--sizes", default="32x100x16,16x500x50")
    options = parser.parse_args()
    where = results.machine()
    times: dict[tuple[str, str], list[float]] = {}
    for name in options.sizes.split(","):
        found = measure(*map(int, name.split("x")), options.rounds)
        times |= {(candidate, name): values for candidate, values in found.items()}
        for candidate, values in found.items():
            ratios = [one / ours for one, ours in zip(values, found["ours"], strict=True)]
            print(
                f"{name:14s} {candidate:14s} {statistics.median(values):8.2f} ms, {statistics.median(ratios):6.2f} "
                f"({min(ratios):.2f}–{max(ratios):.2f}) of ours",
                flush=True,
            )
    results.save("crf", times, "ms", where)


if __name__ == "__main__":
    main()
