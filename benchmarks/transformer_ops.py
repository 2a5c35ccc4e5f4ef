"""The ops of transformers, forward and backward, against plain TensorFlow (graph and XLA) and against copying.

Runs the alternatives in turn, many rounds, in one process, and prints medians, their spread (interquartile range over
median), the ratio to ours in a graph, and what part of the copy's rate ours reaches: the copy moves the bytes that the
op must move, on one core, measured in the same rounds. Another op is one more entry of ``OPS``.

    python benchmarks/transformer_ops.py [--rounds=40] [--ops=swiglu,geglu] [--elements=4194304] [--dtypes=float32]
                                         [--no-save]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import results
import tensorflow as tf

from tftoolkit import custom_ops

Function = Callable[..., Any]  # tensors → a tensor or several
KEY = (1, 2)


class Operation(NamedTuple):
    """An op and what one writes without it.

    Attributes:
      arguments: (rows, dtype) → the inputs; the first one has rows * WIDTH elements. Integers are not differentiated.
      moved: how many times the bytes of the first input must be moved, forward and backward together: reads and writes.
    """

    ours: Function
    plain: Function
    arguments: Callable[[int, str], list[tf.Tensor]]
    moved: float


WIDTH, HEADS, CLASSES = 1024, 16, 32_768


def normal(shape: Sequence[int], dtype: str) -> tf.Tensor:
    return tf.cast(np.random.default_rng(0).standard_normal(shape, np.float32), dtype)


def matrices(count: int, vectors: int = 0) -> Callable[[int, str], list[tf.Tensor]]:
    """Inputs [rows, WIDTH], then vectors [WIDTH]."""
    return lambda rows, dtype: [normal([rows, WIDTH], dtype)] * count + [normal([WIDTH], dtype)] * vectors


def heads(rows: int, dtype: str) -> list[tf.Tensor]:
    return [normal([max(1, rows // 512), min(rows, 512), HEADS, WIDTH // HEADS], dtype)]


def classified(rows: int, dtype: str) -> list[tf.Tensor]:
    rows = max(1, rows * WIDTH // CLASSES)
    return [normal([rows, CLASSES], dtype), tf.range(rows) % CLASSES]


# What one writes without the ops: wide arithmetic as theirs


def wide(function: Function) -> Function:
    """In float32, rounded to the first input's dtype in the end."""

    def run(x: tf.Tensor, *others: tf.Tensor) -> Any:
        outputs = function(*(tf.cast(one, tf.float32) if one.dtype.is_floating else one for one in (x, *others)))
        return tf.nest.map_structure(lambda one: tf.cast(one, x.dtype), outputs)

    return run


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-5) * gamma + beta


def rms_norm(x: tf.Tensor, gamma: tf.Tensor) -> tf.Tensor:
    return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + 1e-6) * gamma


def rotary_embedding(x: tf.Tensor) -> tf.Tensor:
    length, depth = x.shape[1], x.shape[3]
    angles = np.arange(length)[:, None, None] * 10000.0 ** (-np.arange(0, depth, 2) / depth)
    a, b = tf.split(x, 2, -1)
    return tf.concat([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def dropout_add(x: tf.Tensor, residual: tf.Tensor) -> tf.Tensor:
    return residual + tf.nn.experimental.stateless_dropout(x, 0.1, KEY, rng_alg="philox")


OPS: Mapping[str, Operation] = {
    "rms_norm": Operation(custom_ops.rms_norm, wide(rms_norm), matrices(1, 1), 2 + 3),
    "add_rms_norm": Operation(
        lambda x, residual, gamma: custom_ops.rms_norm(x, gamma, residual=residual),
        wide(lambda x, residual, gamma: (rms_norm(x + residual, gamma), x + residual)),
        matrices(2, 1), 4 + 4,
    ),
    "layer_norm": Operation(custom_ops.layer_norm, wide(layer_norm), matrices(1, 2), 2 + 3),
    "add_layer_norm": Operation(
        lambda x, residual, gamma, beta: custom_ops.layer_norm(x, gamma, beta, residual),
        wide(lambda x, residual, gamma, beta: (layer_norm(x + residual, gamma, beta), x + residual)),
        matrices(2, 2), 4 + 4,
    ),
    "rotary_embedding": Operation(custom_ops.rotary_embedding, wide(rotary_embedding), heads, 2 + 2),
    "swiglu": Operation(custom_ops.swiglu, wide(lambda gate, up: tf.nn.silu(gate) * up), matrices(2), 3 + 5),
    "geglu": Operation(
        custom_ops.geglu, wide(lambda gate, up: tf.nn.gelu(gate, approximate=False) * up), matrices(2), 3 + 5
    ),
    "geglu_approximate": Operation(
        lambda gate, up: custom_ops.geglu(gate, up, approximate=True),
        wide(lambda gate, up: tf.nn.gelu(gate, approximate=True) * up),
        matrices(2), 3 + 5,
    ),
    "softmax_cross_entropy": Operation(
        lambda logits, labels: custom_ops.softmax_cross_entropy(labels, logits),
        lambda logits, labels: tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32)),
        classified, 1 + 2,
    ),
    "dropout_add": Operation(
        lambda x, residual: custom_ops.dropout_add(x, residual, KEY, rate=0.1), wide(dropout_add), matrices(2), 3 + 2
    ),
}  # fmt: skip


def training(function: Function) -> Callable[..., list[tf.Tensor]]:
    """(inputs, output gradients) → outputs and gradients."""

    def run(inputs: Sequence[tf.Tensor], upstream: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        floating = [tensor for tensor in inputs if tensor.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floating)
            outputs = tf.nest.flatten(function(*inputs))
        return [*outputs, *tape.gradient(outputs, floating, output_gradients=list(upstream))]

    return run


def copy(bytes_moved: float) -> Callable[[], None]:
    """Reads half of the bytes and writes the other half, with all that NumPy's memcpy does on one core."""
    source = np.zeros(int(bytes_moved) // 2, np.uint8)
    target = np.ones_like(source)
    return lambda: np.copyto(target, source)


def measure(alternatives: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds per call, alternatives in turn, without the first three rounds."""
    taken: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds + 3):
        for name, call in alternatives.items():
            start = time.perf_counter()
            call()
            if number >= 3:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: np.array(values) for name, values in taken.items()}


def compare(name: str, dtype: str, elements: int, rounds: int) -> dict[tuple[str, str], np.ndarray]:
    op = OPS[name]
    inputs = op.arguments(max(1, elements // WIDTH), dtype)
    alternatives: dict[str, Callable[[], object]] = {}
    for label, function in (("ours", op.ours), ("plain", op.plain)):
        upstream = [tf.ones_like(output) for output in tf.nest.flatten(function(*inputs))]
        for mode, jit in (("graph", None), ("XLA", True)):
            traced = tf.function(training(function), jit_compile=jit, autograph=False)
            # The last result is the last to be computed; fetching it waits for it, and costs nothing on the CPU.
            alternatives[f"{label}, {mode}"] = lambda run=traced, up=upstream: run(inputs, up)[-1].numpy()
    moved = op.moved * inputs[0].shape.num_elements() * inputs[0].dtype.size
    alternatives["floor (copy)"] = copy(moved)
    taken = measure(alternatives, rounds)
    ours, floor = np.median(taken["ours, graph"]), np.median(taken["floor (copy)"])
    shape = "x".join(map(str, inputs[0].shape))
    print(f"\n{name}, {shape} {dtype}, forward + backward, {moved / 1e6:.1f} MB, {floor / ours:.0%} of the copy's rate")
    for label, values in taken.items():
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"  {label:14} {median:8.3f} ms ± {(high - low) / median:4.0%}   {median / ours:5.2f} × ours in a graph")
    return {(label, f"{name}, {shape} {dtype}"): values for label, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--ops", default=",".join(OPS), help="names, with commas between them")
    parser.add_argument("--elements", type=int, default=1 << 22, help="of the first input")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results.csv as it is")
    options = parser.parse_args()
    where = results.machine()
    figures: dict[tuple[str, str], Any] = {}
    for name in options.ops.split(","):
        for dtype in options.dtypes.split(","):
            figures |= compare(name, dtype, options.elements, options.rounds)
    if not options.no_save:
        results.save("transformer_ops", figures, "ms", where)


if __name__ == "__main__":
    main()
