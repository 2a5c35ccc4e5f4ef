"""Sequence losses with their gradients against TensorFlow's and PyTorch's.

    python benchmarks/sequence_losses.py [--rounds 7] [--only ctc] [--torch /path/to/python]

The alternatives run in turn, PyTorch in a process of its own, so that a busy machine slows all alike. Each loss is an
entry of ``LOSSES``: sizes, inputs, and functions of them that return a loss and gradients.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import results
import tensorflow as tf
from other_process import OtherProcess

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library

Function = Callable[..., tf.Tensor]  # tensors → losses


class Loss(NamedTuple):
    """What is measured: `sizes` go to `inputs`, and to PyTorch's script behind the loss' name."""

    sizes: tuple[tuple[int, ...], ...]
    inputs: Callable[..., list[tf.Tensor]]
    floating: int  # so many of the inputs, the first, have gradients
    functions: dict[str, Function]
    torch: bool = True


def with_gradients(loss: Function, floating: int, **options: Any) -> Callable[..., Any]:
    """Inputs → the sum of the losses and its gradients."""

    @tf.function(autograph=False, **options)
    def both(*inputs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs[:floating])
            value = tf.reduce_sum(loss(*inputs))
        return value, tape.gradient(value, inputs[:floating])

    return both


def ctc_inputs(batch: int, time_: int, classes: int, labels: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    of_labels = rng.integers(1, classes, [batch, labels])
    return [
        tf.constant(rng.standard_normal([batch, time_, classes], np.float32)),
        tf.constant(of_labels, tf.int32),
        tf.fill([batch], time_),
        tf.fill([batch], labels),
    ]


def tf_ctc(logits: tf.Tensor, labels: tf.Tensor, frames: tf.Tensor, counts: tf.Tensor, sparse: bool) -> tf.Tensor:
    of_labels = tf.sparse.from_dense(labels) if sparse else labels
    return tf.nn.ctc_loss(of_labels, logits, None if sparse else counts, frames, logits_time_major=False, blank_index=0)


def rnnt_inputs(batch: int, time_: int, labels: int, classes: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [
        tf.constant(rng.standard_normal([batch, time_, classes], np.float32)),
        tf.constant(rng.standard_normal([batch, labels + 1, classes], np.float32)),
        tf.constant(rng.integers(1, classes, [batch, labels]), tf.int32),
        tf.fill([batch], time_),
        tf.fill([batch], labels),
    ]


def joint(encoder: tf.Tensor, predictor: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
    """With the joint tensor, which is made and differentiated by TensorFlow."""
    return custom_ops.rnnt_loss(encoder[:, :, tf.newaxis] + predictor[:, tf.newaxis], *rest)


def plain_rnnt(encoder: tf.Tensor, predictor: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
    """The op's reference: a loop over diagonals."""
    op = library.load_builtin("rnnt_loss").op("RnntLoss")
    logits = encoder[:, :, tf.newaxis] + predictor[:, tf.newaxis]
    return op.run_reference(logits, *rest, blank=0, fastemit=0.0)[0]


LOSSES = {
    "ctc": Loss(
        tuple((16, 500, classes, labels) for classes in (64, 5000) for labels in (100, 400)),
        ctc_inputs,
        1,
        {
            "ours": custom_ops.ctc_loss,
            "TensorFlow, dense": lambda *inputs: tf_ctc(*inputs, sparse=False),
            "TensorFlow, sparse": lambda *inputs: tf_ctc(*inputs, sparse=True),
        },
    ),
    "rnnt": Loss(
        ((8, 150, 40, 128), (4, 150, 40, 1024)),
        rnnt_inputs,
        2,
        {"ours": custom_ops.rnnt_loss_additive, "ours, joint tensor": joint, "TensorFlow, loop": plain_rnnt},
        torch=False,
    ),
}


SLOW = "TensorFlow, dense"  # takes up to half a minute, or finds no memory: one call, behind one that traces


def seconds(run: Callable[[], Any]) -> float:
    """Of a call whose first result is a number."""
    start = time.perf_counter()
    float(tf.nest.flatten(run())[0])
    return time.perf_counter() - start


def measure(name: str, sizes: tuple[int, ...], rounds: int, torch: OtherProcess | None) -> dict[str, list[float]]:
    loss = LOSSES[name]
    given = loss.inputs(*sizes)
    traced = {label: with_gradients(function, loss.floating) for label, function in loss.functions.items()}
    timed: dict[str, Callable[[], float]] = {
        label: lambda both=both: seconds(lambda: both(*given)) for label, both in traced.items()
    }
    if torch and loss.torch:
        timed["PyTorch"] = lambda: torch.run(name, *sizes)
    slow = timed.pop(SLOW, None)
    for run in timed.values():
        run(), run()
    found: dict[str, list[float]] = {label: [] for label in timed}
    for _ in range(rounds):
        for label, run in timed.items():
            found[label].append(1e3 * run())
    if slow:
        try:
            slow()
            found[SLOW] = [1e3 * slow()]
        except tf.errors.ResourceExhaustedError as error:
            print(f"{name} {sizes} {SLOW}: {error.message.splitlines()[0]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="one of the losses")
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    options = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(options.torch, "sequence_losses_torch.py") if options.torch else None
    versions = {"torch": torch.version} if torch else {}
    for name in [options.only] if options.only else LOSSES:
        times: dict[tuple[str, str], list[float]] = {}
        for sizes in LOSSES[name].sizes:
            found = measure(name, sizes, options.rounds, torch)
            metric = "x".join(map(str, sizes))
            times |= {(label, metric): values for label, values in found.items()}
            for label, values in found.items():
                ratios = [other / ours for other, ours in zip(values, found["ours"], strict=False)]
                print(
                    f"{name} {metric:18s} {label:20s} {statistics.median(values):9.2f} ms, "
                    f"{statistics.median(ratios):6.2f} ({min(ratios):.2f}–{max(ratios):.2f}) of ours",
                    flush=True,
                )
        results.save(f"{name}_loss", times, "ms", where, **versions)


if __name__ == "__main__":
    main()
