"""Trainings for test_distributed.py. ``python distributed.py JSON`` trains as the JSON text says and saves the end.

Keys: ``directory``, ``strategy`` ("none", "mirrored", or "workers", which TF_CONFIG names), ``model``, ``runner``,
``accumulate``, ``steps``, ``batch``.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tftoolkit import pipelines, trainers


class Module(tf.Module):
    """64-32-10 with dropout that draws from the step's key."""

    def __init__(self):
        super().__init__()
        self.hidden = tf.Variable(tf.random.stateless_normal([64, 32], [1, 2]) / 8)
        self.bias = tf.Variable(tf.zeros([32]))
        self.output = tf.Variable(tf.random.stateless_normal([32, 10], [3, 4]) / 6)

    def __call__(self, x, key):
        x = tf.nn.relu(x @ self.hidden + self.bias)
        if key is not None:
            x = tf.nn.experimental.stateless_dropout(x, 0.2, seed=key)
        return x @ self.output


class Keras(tf.Module):
    """64-32-10 of either generation of Keras."""

    def __init__(self, package):
        super().__init__()
        dense = package.layers.Dense
        start = package.initializers.GlorotUniform(5)
        self.net = package.Sequential([dense(32, "tanh", kernel_initializer=start), dense(10, kernel_initializer=start)])
        self.net.build([None, 64])

    def __call__(self, x, key):
        return self.net(x)


def build(kind):
    """The model and its optimizer."""
    if kind == "module":
        return Module(), trainers.optimizers.AdamW(3e-3)
    if kind == "keras":
        import keras as package
    else:
        import tf_keras as package
    return Keras(package), package.optimizers.AdamW(3e-3)


class Classifier(trainers.Step):
    """Each example counts as its weight says: those of one replica more than those of another."""

    def __init__(self, kind, accumulate):
        super().__init__()
        self.model, optimizer = build(kind)
        self.update = trainers.Update(
            self.model, optimizer, clip_norm=1.0, ema=0.99, accumulate=accumulate, skip_spikes=5.0
        )

    def __call__(self, batch, key):
        def losses(batch, key):
            logits = self.model(batch["image"], key)
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


def train(directory, strategy, model, runner, accumulate, steps, batch=32, drop_remainder=True):
    strategy = strategy_for(strategy)
    tf.config.experimental.enable_op_determinism()
    tf.random.set_seed(0)
    data = load_digits()
    arrays = {
        "image": (data.data / 16).astype(np.float32),
        "label": data.target.astype(np.int32),
        "weight": np.linspace(0.1, 2, len(data.target), dtype=np.float32),
    }
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(arrays), seed=3).shuffle()
    with strategy.scope() if strategy else trainers.faults.contextlib.nullcontext():
        step = Classifier(model, accumulate)
    images, labels = tf.constant(arrays["image"][:200]), arrays["label"][:200]

    def evaluate():
        return {"accuracy": float(np.mean(np.argmax(step.model(images, None), 1) == labels))}

    trainer = trainers.Trainer(
        step,
        pipeline.batch(batch, drop_remainder=drop_remainder),
        directory,
        runner=runner,
        steps_per_call=20,
        evaluate=evaluate,
        evaluate_every=30,
        checkpoint_every=25,
        log_every=3,
        best=trainers.Best("accuracy"),
        hooks=[("start", lambda _: print("started", flush=True))],
    )
    trainer.run(steps)
    worker = "" if trainer.is_chief else f"-{json.loads(os.environ['TF_CONFIG'])['task']['index']}"
    final = {name: variable.numpy() for name, variable in step.named_variables().items()}
    np.savez(Path(directory).parent / f"{Path(directory).name}{worker}.npz", **final)


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
