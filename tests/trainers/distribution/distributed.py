"""Trainings for test_distributed.py, each in a process of its own that is forked off after the slow imports.

A job: arguments of ``train``; with the strategy "workers" two processes train, and ``faults`` are those of each.
The second worker writes its variables to ``DIRECTORY-1.npz``.
"""

import contextlib
import json
import os
import sys
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
from trainings import exit_code, fork, serve


class Keras(tf.Module):
    """64-32-10 of either generation of Keras."""

    def __init__(self, package):
        super().__init__()
        dense = package.layers.Dense
        start = package.initializers.GlorotUniform(5)
        self.net = package.Sequential(
            [dense(32, "tanh", kernel_initializer=start), dense(10, kernel_initializer=start)]
        )
        self.net.build([None, 64])

    def __call__(self, x, key):
        return self.net(x)


def build(kind):
    """The model and its optimizer."""
    if kind in ("module", "tape", "fused"):
        return Module(), trainers.optimizers.AdamW(3e-3, fused=kind == "fused")
    package = keras if kind == "keras" else tf_keras
    return Keras(package), package.optimizers.AdamW(3e-3)


class Classifier(trainers.Step):
    """Each example counts as its weight says: those of one replica more than those of another."""

    def __init__(self, kind, accumulate, precision):
        super().__init__()
        self.kind = kind
        self.model, optimizer = build(kind)
        self.update = trainers.Update(
            *(self.model, optimizer),
            clip_norm=1.0,
            ema=0.99,
            accumulate=accumulate,
            skip_spikes=5.0,
            precision=precision,
        )

    def __call__(self, batch, key):
        if self.kind == "tape":
            return self.update.apply([tf.zeros_like(weight) for weight in self.update.weights])

        def losses(batch, key):
            images = tf.cast(batch["image"], self.update.compute_dtype)
            logits = tf.cast(self.model(images, key), tf.float32)
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
            hits = tf.cast(tf.argmax(logits, 1, tf.int32) == batch["label"], tf.float32)
            return trainers.Losses(loss, batch["weight"], {"accuracy": hits})

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def strategy_for(kind):
    if kind == "none":
        return None
    if kind == "workers":
        return trainers.distributed_strategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return trainers.distributed_strategy(["CPU:0", "CPU:1"])


def train(
    directory,
    strategy="none",
    runner="graph",
    accumulate=1,
    steps=70,
    model="module",
    batch=32,
    precision="float32",
    bad=(),
):
    """``strategy``: "none", "mirrored" (two devices), or "workers", those of TF_CONFIG; ``bad``: batches full of NaN,
    in data that aren't shuffled."""
    strategy = strategy_for(strategy)
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)
    data = load_digits()
    arrays = {
        "image": (data.data / 16).astype(np.float32),
        "label": data.target.astype(np.int32),
        "weight": np.linspace(0.1, 2, len(data.target), dtype=np.float32),
    }
    for number in bad:
        arrays["image"][number * batch : (number + 1) * batch] = np.nan
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(arrays), seed=3)
    if not bad:
        pipeline = pipeline.shuffle()
    with strategy.scope() if strategy else contextlib.nullcontext():
        step = Classifier(model, accumulate, precision)
    images, labels = tf.constant(arrays["image"][:200]), arrays["label"][:200]

    def evaluate():
        return {"accuracy": float(np.mean(np.argmax(step.model(images, None), 1) == labels))}

    trainer = trainers.Trainer(
        step,
        pipeline.batch(batch, drop_remainder=batch == 32),
        directory,
        runner=runner,
        steps_per_call=20,
        evaluate=evaluate,
        evaluate_every=30,
        checkpoint_every=25,
        log_every=3,
        best=trainers.Best("accuracy"),
        max_skipped_in_a_row=3,
    )
    trainer.run(steps)
    final = {name: variable.numpy() for name, variable in step.named_variables().items()}
    index = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))["task"]["index"]
    np.savez(f"{directory}-{index}.npz" if index else f"{directory}.npz", **final)


def _run(job):
    faults = job.pop("faults", (None, None))
    if job.get("strategy") != "workers":
        return [exit_code(fork(train, job, fault=faults[0]))]
    workers = cluster.addresses((), 2, port=1)
    children = []
    for index, fault in enumerate(faults):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        children.append(fork(train, job, {"TF_CONFIG": json.dumps(config)}, fault, seconds=150))
    return [exit_code(child) for child in children]


if __name__ == "__main__":
    serve(_run)
