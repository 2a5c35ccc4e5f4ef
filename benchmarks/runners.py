"""Microseconds per training step of each runner, next to a plain compiled loop and Keras 3.

    python benchmarks/runners.py [--rounds 7] [--steps 1000]

The model is an MLP 784-64-64-10, batch 32, cross-entropy, AdamW; the data set repeats one batch, so that the loop is
measured and not the input. All candidates run in turns, so that a busy machine slows all of them alike; median and
range over the rounds are printed and written to benchmarks/results.csv; the ratio to the plain loop is taken within
each round.

*plain loop* calls ``tf.function(jit_compile=True)`` once per batch. *Keras 3 fit* is ``steps_per_execution=100,
jit_compile=True``. *Trainer* is the whole loop with ``xla_chunk``: each round it restores, begins a pipeline, writes a
line of metrics every 100 steps, and saves.
"""

import argparse
import contextlib
import io
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import results
import tensorflow as tf

from tftoolkit import pipelines, trainers

BATCH = 32
STEPS_PER_CALL = 100
WIDTHS = (784, 64, 64, 10)


class Mlp(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        sizes = list(itertools.pairwise(WIDTHS))
        self.kernels = [tf.Variable(rng.normal(size=size, scale=size[0] ** -0.5), dtype=tf.float32) for size in sizes]
        self.biases = [tf.Variable(tf.zeros([size[1]])) for size in sizes]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = tf.nn.relu(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]


class Classifier(trainers.Step):
    def __init__(self) -> None:
        super().__init__()
        self.model = Mlp()
        self.update = trainers.Update(self.model, trainers.optimizers.AdamW(1e-3))

    def __call__(self, batch: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(batch["x"])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))
        self.update.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


def one_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, WIDTHS[0])).astype(np.float32)
    return {"x": x, "y": rng.integers(0, WIDTHS[-1], BATCH).astype(np.int32)}


def with_runner(kind: str) -> Callable[[int], None]:
    data = tf.data.Dataset.from_tensors(one_batch()).repeat()
    runner = trainers.Runner(Classifier(), data.element_spec, kind=kind, steps_per_call=STEPS_PER_CALL)

    def run(steps: int) -> None:
        for call in runner.run(lambda step: data, 0, steps):  # noqa: B007
            pass
        call.metrics["loss"].numpy()

    return run


def with_trainer() -> Callable[[int], None]:
    step = Classifier()
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(one_batch())).batch(BATCH, drop_remainder=True)
    directory = tempfile.TemporaryDirectory()
    trainer = trainers.Trainer(
        step, pipeline, directory.name, runner="xla_chunk", steps_per_call=STEPS_PER_CALL, checkpoint_every=10**9
    )
    done = 0

    def run(steps: int, keep: tempfile.TemporaryDirectory[str] = directory) -> None:
        nonlocal done
        done += steps
        with contextlib.redirect_stderr(io.StringIO()):
            trainer.run(done)

    return run


def with_plain_loop() -> Callable[[int], None]:
    data = tf.data.Dataset.from_tensors(one_batch()).repeat().prefetch(2)
    function = tf.function(Classifier(), jit_compile=True)
    key = tf.constant([0, 0])

    def run(steps: int) -> None:
        for batch in data.take(steps):
            metrics = function(batch, key)
        metrics["loss"].numpy()

    return run


def with_keras() -> Callable[[int], None]:
    layers = [keras.layers.Dense(width, activation="relu") for width in WIDTHS[1:-1]]
    model = keras.Sequential([keras.Input([WIDTHS[0]]), *layers, keras.layers.Dense(WIDTHS[-1])])
    model.compile(
        keras.optimizers.AdamW(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=STEPS_PER_CALL,
        jit_compile=True,
    )
    batch = one_batch()
    data = tf.data.Dataset.from_tensors((batch["x"], batch["y"])).repeat()
    return lambda steps: model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000, help="per round (eager: a tenth); a multiple of 1000")
    arguments = parser.parse_args()
    where = results.machine()

    candidates = {
        "plain loop": with_plain_loop(),
        **{kind: with_runner(kind) for kind in ("eager", "graph", "xla", "xla_chunk")},
        "Trainer, xla_chunk": with_trainer(),
        "Keras 3 fit": with_keras(),
    }
    for run in candidates.values():
        run(2 * STEPS_PER_CALL)  # compile
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(arguments.rounds):
        for name, run in candidates.items():
            steps = arguments.steps // 10 if name == "eager" else arguments.steps
            begin = time.perf_counter()
            run(steps)
            times[name].append((time.perf_counter() - begin) / steps * 1e6)

    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, TensorFlow {tf.__version__}, ", end=""
    )
    print(f"Keras {keras.__version__}; {arguments.rounds} rounds of {arguments.steps} steps")
    print(f"{'':20} {'µs/step':>8} {'range':>13} {'steps/s':>8} {'× plain loop':>13}")
    for name, values in times.items():
        ratio = statistics.median(plain / own for plain, own in zip(times["plain loop"], values, strict=True))
        median = statistics.median(values)
        spread = f"{min(values):.0f}–{max(values):.0f}"
        print(f"{name:20} {median:8.0f} {spread:>13} {1e6 / median:8.0f} {ratio:13.2f}")
    figures = {(name, "step"): values for name, values in times.items()}
    results.save("runners", figures, "µs", where, keras=keras.__version__)


if __name__ == "__main__":
    main()
