"""rms_norm forward and backward against plain TensorFlow (graph and XLA), and the price of an eager call.

Runs the alternatives in turn, many rounds, in one process, and prints medians, their spread (interquartile range over
median), the ratio to ours, and how far each is from the floor: the time that copying the bytes the op must move takes
here, measured in the same rounds. Medians and ranges go to benchmarks/results.csv too.

    python benchmarks/rms_norm.py [rounds]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import sys
import time
from collections.abc import Callable

import numpy as np
import results
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.rms_norm.cases import BENCHMARK, Case

assert custom_ops.rms_norm  # registers the op
Figures = dict[tuple[str, str], np.ndarray]
FORWARD = ops.find("TfToolkit>RmsNorm")
assert FORWARD is not None


def plain(x: tf.Tensor, gamma: tf.Tensor) -> tf.Tensor:
    """What one writes without the op."""
    return FORWARD.run_reference(x, gamma, epsilon=1e-6).y


def training(function: Callable[..., tf.Tensor]) -> Callable[..., list[tf.Tensor]]:
    """Forward and backward."""

    def run(x: tf.Tensor, gamma: tf.Tensor, dy: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = function(x, gamma)
        return [y, *tape.gradient(y, [x, gamma], output_gradients=dy)]

    return run


def copy_seconds(bytes_moved: int) -> float:
    """Time to read half of the bytes and write the other half, with all that NumPy's memcpy does on one core."""
    source = np.zeros(bytes_moved // 2, np.uint8)
    target = np.ones_like(source)
    start = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - start


def measure(alternatives: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds per call, alternatives in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for number in range(rounds + 3):
        for name, call in alternatives.items():
            start = time.perf_counter()
            call()
            if number >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def compare(case: Case, rounds: int) -> Figures:
    rng = np.random.default_rng(0)
    shapes = (case.shape, case.shape[-1:], case.shape)
    arguments = [tf.cast(rng.standard_normal(shape), case.dtype) for shape in shapes]
    functions = {
        "ours, graph": tf.function(training(custom_ops.rms_norm)),
        "ours, XLA": tf.function(training(custom_ops.rms_norm), jit_compile=True),
        "plain, graph": tf.function(training(plain)),
        "plain, XLA": tf.function(training(plain), jit_compile=True),
    }
    size = int(np.prod(case.shape)) * arguments[0].dtype.size
    alternatives: dict[str, Callable[[], object]] = {
        name: (lambda function=function: [output.numpy() for output in function(*arguments)[2:]])
        for name, function in functions.items()
    }
    # Forward reads x and writes y; backward reads dy and x and writes dx.
    alternatives["floor (copy)"] = lambda: copy_seconds(5 * size)
    seconds = measure(alternatives, rounds)
    ours = np.median(seconds["ours, graph"])
    print(f"\n{'x'.join(map(str, case.shape))} {case.dtype}, forward + backward, {5 * size / 1e6:.1f} MB")
    for name, values in seconds.items():
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        spread = (high - low) / median
        print(f"  {name:14} {median * 1e3:8.3f} ms ± {spread:4.0%}   {median / ours:5.2f} × ours in a graph")
    shape = "x".join(map(str, case.shape))
    return {(name, f"forward + backward, {shape} {case.dtype}"): values * 1e3 for name, values in seconds.items()}


def eager_call(rounds: int) -> Figures:
    x, gamma = tf.ones([8, 64]), tf.ones(64)
    calls = 200
    alternatives: dict[str, Callable[[], object]] = {
        "rms_norm": lambda: [custom_ops.rms_norm(x, gamma) for _ in range(calls)],
        "tf.multiply": lambda: [tf.multiply(x, gamma) for _ in range(calls)],
        "tf.raw_ops.Mul": lambda: [tf.raw_ops.Mul(x=x, y=gamma) for _ in range(calls)],
    }
    print("\nOne eager call, 8x64 float32")
    seconds = measure(alternatives, rounds)
    for name, values in seconds.items():
        low, median, high = np.quantile(values / calls, [0.25, 0.5, 0.75])
        print(f"  {name:14} {median * 1e6:8.2f} µs ± {(high - low) / median:4.0%}")
    return {(name, "eager call, 8x64 float32"): values / calls * 1e6 for name, values in seconds.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    where = results.machine()
    figures: Figures = {}
    for case in BENCHMARK:
        figures |= compare(case, rounds)
    results.save("rms_norm", figures, "ms", where)
    results.save("rms_norm_eager", eager_call(rounds), "µs", where)


if __name__ == "__main__":
    main()
