"""What an eager call of an op costs beside one of TensorFlow's: small tensors, so that the call is all there is.

Runs the calls in turn, many rounds, in one process, and prints medians and the ratio to ``tf.multiply``. *runtime* is
what TensorFlow's runtime alone takes for ``Mul``, without any Python around it.

    python benchmarks/eager_call.py [--rounds=40]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import results
import tensorflow as tf
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context

from tftoolkit import custom_ops

CALLS = 1000


def calls() -> dict[str, Callable[[], Any]]:
    x, vector, labels = tf.ones([4, 8]), tf.ones([8]), tf.zeros([4], tf.int32)
    runtime = context.context()
    return {
        "tf.multiply": lambda: tf.multiply(x, x),
        "runtime": lambda: pywrap_tfe.TFE_Py_FastPathExecute(runtime, "Mul", None, x, x),
        "tf.nn.softmax": lambda: tf.nn.softmax(x),
        "tf.raw_ops.SoftmaxCrossEntropyWithLogits": lambda: tf.raw_ops.SoftmaxCrossEntropyWithLogits(
            features=x, labels=x
        ),
        "swiglu": lambda: custom_ops.swiglu(x, x),
        "rms_norm": lambda: custom_ops.rms_norm(x, vector),
        "rms_norm with residual": lambda: custom_ops.rms_norm(x, vector, residual=x),
        "softmax_cross_entropy": lambda: custom_ops.softmax_cross_entropy(labels, x),
        "tf.nn.sparse_softmax_cross_entropy_with_logits": lambda: tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, x
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    where = results.machine()
    functions = calls()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for call in functions.values():
        call(), call()
    for _ in range(options.rounds):
        for name, call in functions.items():
            times[name].append(1e6 * timeit.timeit(call, number=CALLS) / CALLS)
    base = times["tf.multiply"]
    ratios = {name: [one / other for one, other in zip(values, base, strict=True)] for name, values in times.items()}
    for name, values in times.items():
        low, high = (statistics.quantiles(ratios[name], n=10)[i] for i in (0, -1))
        ratio = f"{statistics.median(ratios[name]):.2f} ({low:.2f}–{high:.2f})"
        print(f"{name:48s} {statistics.median(values):6.2f} µs, {ratio}")
    results.save("eager_call", {(name, "call"): values for name, values in times.items()}, "µs", where)
    results.save("eager_call", {(name, "of tf.multiply"): values for name, values in ratios.items()}, "ratio", where)


if __name__ == "__main__":
    main()
