"""Microseconds per training step: the runners and the whole Trainer beside plain loops, Keras fit and PyTorch.

    python benchmarks/runners.py [--models mlp,cnn,transformer] [--seconds 70] [--torch /path/to/python]

Each model is one Keras 3 model for all TensorFlow candidates (PyTorch: the same layers), with cross-entropy and AdamW
(mlp-sgd: plain gradient descent); the data repeat one batch, so that the loop is measured and not the input. The
candidates run in turns, so that a busy machine slows all of them alike; median and range over the rounds are printed
and written to benchmarks/results.csv, and ratios are taken within each round. Each model takes about ``--seconds``,
compilation included, but at least three rounds. The last lines say whether what is promised holds.

*plain graph* and *plain xla* call a ``tf.function`` of model, tape and the optimizer of Keras once per batch. *Keras
fit* is ``steps_per_execution=100, jit_compile=True``; *fused* is ``AdamW(fused=True)``. *Trainer* is the whole loop
with a real pipeline, a line of metrics every 100 steps and the runner that ``auto`` picks, without its start.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import results
import tensorflow as tf
from other_process import OtherProcess

from tftoolkit import pipelines, trainers

STEPS_PER_CALL = 100
STEPS = {"mlp": 1000, "mlp-sgd": 1000, "cnn": 100, "transformer": 100}  # per round
LEAST_ROUNDS = 3
FEW = ("eager", "PyTorch eager", "PyTorch compile")  # a fifth of the steps suffices
Run = Callable[[int], float | None]


def transformer_block(x: keras.KerasTensor) -> keras.KerasTensor:
    attend = keras.layers.MultiHeadAttention(4, 16)
    y = keras.layers.LayerNormalization()(x)
    x = x + attend(y, y, use_causal_mask=True)
    y = keras.layers.Dense(256, activation="gelu")(keras.layers.LayerNormalization()(x))
    return x + keras.layers.Dense(64)(y)


def build(name: str) -> keras.Model:
    layers = keras.layers
    if name.startswith("mlp"):
        return keras.Sequential(
            [keras.Input([784]), layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(10)]
        )
    if name == "cnn":
        convolutions = [layers.Conv2D(16, 3, 1, "same", activation="relu"), layers.MaxPool2D()]
        convolutions += [layers.Conv2D(32, 3, 1, "same", activation="relu"), layers.MaxPool2D()]
        return keras.Sequential([keras.Input([28, 28, 1]), *convolutions, layers.Flatten(), layers.Dense(10)])
    tokens = keras.Input([64], dtype="int32")
    x = layers.Embedding(256, 64)(tokens)
    for _ in range(2):
        x = transformer_block(x)
    return keras.Model(tokens, layers.Dense(256)(layers.LayerNormalization()(x)))


def one_batch(name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if name == "transformer":
        return {key: rng.integers(0, 256, [8, 64]).astype(np.int32) for key in ("x", "y")}
    size, shape = (32, [784]) if name.startswith("mlp") else (64, [28, 28, 1])
    return {"x": rng.normal(size=[size, *shape]).astype(np.float32), "y": rng.integers(0, 10, size).astype(np.int32)}


def cross_entropy(model: keras.Model, batch: dict[str, tf.Tensor]) -> tf.Tensor:
    logits = model(batch["x"], training=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["y"], logits))


def keras_optimizer(name: str) -> keras.Optimizer:
    return keras.optimizers.SGD(1e-3) if name.endswith("sgd") else keras.optimizers.AdamW(1e-3)


class Training(trainers.Step):
    def __init__(self, name: str, *, fused: bool = False) -> None:
        super().__init__()
        self.model = build(name)
        own = trainers.optimizers
        optimizer = own.Sgd(1e-3) if name.endswith("sgd") else own.AdamW(1e-3, fused=fused)
        self.update = trainers.Update(self.model, optimizer)

    def __call__(self, batch: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = cross_entropy(self.model, batch)
        self.update.apply(tape.gradient(loss, self.update.weights), self.update.weights)
        return {"loss": loss}


class Repeated:
    """A pipeline of one batch, or of one stack of it."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        self.batch = batch
        self.element_spec = tf.data.Dataset.from_tensors(batch).element_spec

    def dataset(self, start: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(self.batch).repeat().prefetch(2)

    def stack(self, count: int) -> "Repeated":
        return Repeated({key: np.stack([value] * count) for key, value in self.batch.items()})


def with_runner(name: str, kind: str, *, fused: bool = False) -> Run:
    data = Repeated(one_batch(name))
    runner = trainers.Runner(Training(name, fused=fused), data.element_spec, kind=kind, steps_per_call=STEPS_PER_CALL)
    feed = runner.feed(data)
    done = 0

    def run(steps: int) -> None:
        nonlocal done
        end = done + steps
        while done < end:
            call = runner.call(feed, done, end - done)
            done += call.steps
        call.values()

    return run


def with_trainer(name: str) -> Run:
    """The trainer runs in a thread of its own and waits in a hook while it isn't its turn."""
    batch, steps = one_batch(name), STEPS[name]
    source = pipelines.sources.arrays(batch)
    go, done = threading.Semaphore(0), threading.Semaphore(0)

    def hook(trainer: trainers.Trainer) -> None:
        done.release()
        go.acquire()

    pipeline = pipelines.Pipeline(source).batch(len(batch["x"]), drop_remainder=True)
    trainer = trainers.Trainer(
        *(Training(name), pipeline, tempfile.mkdtemp()),
        checkpoint_every=10**9,
        hooks=[("start", hook), (trainers.every(steps=steps), hook)],
    )
    threading.Thread(target=lambda: trainer.run(10**9), daemon=True).start()
    done.acquire()

    def run(_: int) -> None:
        go.release()
        done.acquire()

    return run


def with_plain_loop(name: str, *, jit: bool) -> Run:
    data = tf.data.Dataset.from_tensors(one_batch(name)).repeat().prefetch(2)
    model, optimizer = build(name), keras_optimizer(name)
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit)
    def train(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = cross_entropy(model, batch)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(gradients)
        return loss

    def run(steps: int) -> None:
        for batch in data.take(steps):
            loss = train(batch)
        loss.numpy()

    return run


def with_keras(name: str) -> Run:
    model = build(name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_optimizer(name), loss, steps_per_execution=STEPS_PER_CALL, jit_compile=True)
    batch = one_batch(name)
    data = tf.data.Dataset.from_tensors((batch["x"], batch["y"])).repeat()

    def run(steps: int) -> None:
        model.fit(data, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False)

    return run


def measure(name: str, seconds: float, torch: OtherProcess | None) -> dict[str, list[float]]:
    """Microseconds per step of each candidate, one figure for each round."""
    end = time.perf_counter() + seconds
    candidates: dict[str, Run] = {
        "plain graph": with_plain_loop(name, jit=False),
        "plain xla": with_plain_loop(name, jit=True),
        **{kind: with_runner(name, kind) for kind in ("eager", "graph", "xla", "xla_chunk")},
        **({} if name.endswith("sgd") else {"xla_chunk, fused": with_runner(name, "xla_chunk", fused=True)}),
        "Trainer": with_trainer(name),
        "Keras fit": with_keras(name),
    }
    if torch:
        for mode in ("eager", "compile"):
            candidates[f"PyTorch {mode}"] = lambda steps, mode=mode: torch.run(name, mode, steps)
    for run in candidates.values():
        run(STEPS_PER_CALL)  # compiles
    times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
    while time.perf_counter() < end or len(times["Trainer"]) < LEAST_ROUNDS:
        for candidate, run in candidates.items():
            steps = STEPS[name] // 5 if candidate in FEW else STEPS[name]
            begin = time.perf_counter()
            taken = run(steps) or time.perf_counter() - begin
            times[candidate].append(taken / steps * 1e6)
    return times


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times as fast, round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def promises(name: str, times: dict[str, list[float]]) -> list[tuple[str, list[float], float]]:
    """What is promised of a model's speed: (what, ratio in each round, the least that its median may be)."""
    if name.startswith("mlp"):
        found = [("xla_chunk is 2.5 × as fast as Keras fit", ratios(times["Keras fit"], times["xla_chunk"]), 2.5)]
        others = min(("eager", "graph", "xla"), key=lambda kind: statistics.median(times[kind]))
        return [*found, (f"xla_chunk is as fast as {others}", ratios(times[others], times["xla_chunk"]), 1.0)]
    baseline = min(("Keras fit", "plain graph", "plain xla"), key=lambda kind: statistics.median(times[kind]))
    runner = "graph" if name == "cnn" else "xla_chunk"  # what auto picks
    return [(f"{runner} is as fast as {baseline}", ratios(times[baseline], times[runner]), 1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,cnn,transformer")
    parser.add_argument("--seconds", type=float, default=70.0, help="for each model")
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    arguments = parser.parse_args()
    where = results.machine()
    torch = OtherProcess(arguments.torch, "runners_torch.py") if arguments.torch else None
    versions = {"keras": keras.__version__} | ({"torch": torch.version} if torch else {})
    figures: dict[tuple[str, str], list[float]] = {}
    units: dict[str, str] = {}
    verdicts, console = [], sys.stderr
    for name in arguments.models.split(","):
        with open(os.devnull, "w") as sys.stderr:  # the trainer's progress
            times = measure(name, arguments.seconds, torch)
        sys.stderr = console
        print(f"\n{name:16} {'µs/step':>9} {'range':>15} {'× Keras fit':>12}   {len(times['Trainer'])} rounds")
        units |= {name: "µs", f"{name}, Keras fit / this": "times"}
        for candidate, values in times.items():
            ratio = ratios(times["Keras fit"], values)
            spread = f"{min(values):.0f}–{max(values):.0f}"
            print(
                f"{candidate:16} {statistics.median(values):9.0f} {spread:>15} {statistics.median(ratio):12.2f}",
                flush=True,
            )
            figures |= {(candidate, name): values, (candidate, f"{name}, Keras fit / this"): ratio}
        for promise, ratio, least in promises(name, times):
            verdict = "holds" if statistics.median(ratio) >= least else "DOES NOT HOLD"
            verdicts.append(
                f"{name}: {promise}: {statistics.median(ratio):.2f} ({min(ratio):.2f}–{max(ratio):.2f}) {verdict}"
            )
    print("", *verdicts, sep="\n")
    results.save("runners", figures, units, where, **versions)


if __name__ == "__main__":
    main()
    os._exit(0)  # the trainers' threads never end
