"""Trainings for test_asynchronous.py, each process of which is forked off after the slow imports.

A job: arguments of ``train``, and

* ``servers``: how many parameter servers; 0: one process alone,
* ``disturb``: ``[step, task, signal]``: what a task ("worker 1") gets once this step is logged. A worker that is killed
  is started again.

The exit codes are by task; those of a killed worker are its successor's.

As a program for ``tftoolkit launch``: ``python asynchronous.py '{"directory": …}'``.
"""

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

from tftoolkit import pipelines, trainers
from tftoolkit.trainers.distribution import cluster

sys.path.insert(0, str(Path(__file__).parents[1]))
from exact import Module
from trainings import fork, serve

WORKERS = 2
BATCH = 32
UPDATES = {
    "plain": {},
    "all": {"clip_norm": 1.0, "ema": 0.99, "accumulate": 2, "skip_spikes": 5.0},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
}


class Keras(tf.Module):
    """64-32-10 of either generation of Keras, with batch normalization."""

    def __init__(self, package):
        super().__init__()
        layers = package.layers
        self.net = package.Sequential([layers.Dense(32, "relu"), layers.BatchNormalization(), layers.Dense(10)])
        self.net.build([None, 64])

    def __call__(self, x, key):
        return self.net(x, training=key is not None)


class Classifier(trainers.Step):
    """Counts how often it has seen each example."""

    def __init__(self, model, update, optimizer):
        super().__init__()
        package = {"keras": keras, "tf_keras": tf_keras}.get(model)
        self.model = Keras(package) if package else Module()
        rule = {
            "ours": lambda: trainers.optimizers.AdamW(3e-3),
            "keras": lambda: keras.optimizers.AdamW(3e-3),
            "tf_keras": lambda: tf_keras.optimizers.AdamW(3e-3),
        }
        self.update = trainers.Update(self.model, rule[optimizer](), **UPDATES[update])
        self.seen = tf.Variable(tf.zeros([1797], tf.int32), trainable=False)

    def __call__(self, batch, key):
        def losses(batch, key):
            logits = self.model(tf.cast(batch["image"], self.update.compute_dtype), key)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], tf.cast(logits, tf.float32))

        rows = batch["row"]
        self.seen.assign_add(tf.scatter_nd(rows[:, None], tf.ones_like(rows), [1797]))
        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


class Counter(trainers.Step):
    """Each step adds exactly 1 to ``weight`` and to its exponential average's number of updates."""

    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(tf.zeros([3]))
        self.update = trainers.Update([self.weight], trainers.optimizers.Sgd(1.0), ema=0.9)

    def __call__(self, batch, key):
        # A batch with a NaN is skipped: it must add exactly nothing.
        bad = tf.reduce_any(tf.math.is_nan(batch["image"]))
        gradient = tf.where(bad, np.nan, -1.0) * tf.ones([3])
        return {"loss": -tf.reduce_sum(self.weight)} | self.update.apply([gradient])


def data(bad=()):
    digits = load_digits()
    arrays = {
        "image": (digits.data / 16).astype(np.float32),
        "label": digits.target.astype(np.int32),
        "row": np.arange(len(digits.target), dtype=np.int32),
    }
    for number in bad:
        arrays["image"][number * BATCH : (number + 1) * BATCH] = np.nan
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(arrays), seed=3)
    return pipeline if bad else pipeline.shuffle()


def train(
    directory,
    model="module",
    update="plain",
    optimizer="ours",
    runner="auto",
    steps=120,
    bad=(),
    drop_remainder=True,
    hooks=(),
):
    strategy = trainers.distributed_strategy()
    with strategy.scope() if strategy else contextlib.nullcontext():
        step = Counter() if model == "counter" else Classifier(model, update, optimizer)
    digits = load_digits()

    def evaluate():
        if model == "counter":
            return {"accuracy": 0.0}
        images = tf.constant(digits.data[:500] / 16, tf.float32)
        return {"accuracy": float(np.mean(np.argmax(step.model(images, None), 1) == digits.target[:500]))}

    trainers.Trainer(
        step,
        data(bad).batch(BATCH, drop_remainder=drop_remainder),
        directory,
        runner=runner,
        evaluate=evaluate,
        checkpoint_every=40,
        log_every=1,
        max_skipped_in_a_row=4,
        hooks=hooks,
    ).run(steps)
    np.savez(f"{directory}.npz", **{name: variable.numpy() for name, variable in step.named_variables().items()})


def _logged(directory):
    with contextlib.suppress(FileNotFoundError, IndexError, ValueError):
        return json.loads((Path(directory) / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return 0


def _run(job):
    servers, disturb = job.pop("servers", 1), job.pop("disturb", None)
    environments = {"chief": {}}
    if servers:
        tasks = cluster.asynchronous(cluster.addresses((), 1 + WORKERS + servers, port=1), WORKERS)
        environments = {task.name: task.environment for task in tasks}
    running = {fork(train, job, environment): task for task, environment in environments.items()}
    codes = {}
    while running:
        time.sleep(0.05)
        if disturb and _logged(job["directory"]) >= disturb[0]:
            _, task, number = disturb
            disturb = None
            os.kill(next(pid for pid, name in running.items() if name == task), number)
        for pid, task in list(running.items()):
            if (status := _ended(pid)) is not None:
                del running[pid]
                codes[task] = status
                if task.startswith("worker") and status == -signal.SIGKILL and "chief" in running.values():
                    running[fork(train, job, environments[task])] = task
    return codes


def _ended(pid):
    """The exit code of a child, None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


if __name__ == "__main__":
    if len(sys.argv) > 1:
        said = ("log", lambda trainer: print(f"logged step {trainer.finished_steps}", flush=True))
        train(**json.loads(sys.argv[1]), hooks=[said])
        sys.exit()
    serve(_run)
