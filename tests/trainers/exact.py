"""Trainings for test_exactness.py and test_kill.py, forked off one by one after the slow imports.

A job: arguments of ``train``, and ``fault``. A training says ``pid NUMBER`` at the event ``announce``.
"""

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

sys.path.insert(0, str(Path(__file__).parent))
from trainings import exit_code, fork, serve


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


def _of_keras(package):
    """The same with the package's own dropout, whose random state is in its variables, and batch normalization."""
    start = package.initializers.GlorotUniform(5)
    layers = package.layers
    model = package.Sequential(
        [
            layers.Dense(32, activation="relu", kernel_initializer=start),
            layers.BatchNormalization(),
            layers.Dropout(0.2, seed=6),
            layers.Dense(10, kernel_initializer=start),
        ]
    )
    model.build([None, 64])
    return model


def build(kind):
    """The model and its optimizer."""
    if kind in ("module", "fused"):
        return Module(), trainers.optimizers.AdamW(3e-3, fused=kind == "fused")
    if kind == "keras":
        return _of_keras(keras), keras.optimizers.AdamW(3e-3)
    tf_keras.backend.experimental.enable_tf_random_generator()
    return _of_keras(tf_keras), tf_keras.optimizers.AdamW(3e-3)


class Classifier(trainers.Step):
    """Its metric ``order`` depends on all batches so far and their order."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.model, optimizer = build(kind)
        self.update = trainers.Update(self.model, optimizer, clip_norm=1.0, ema=0.99)
        self.order = tf.Variable(0, dtype=tf.int64, trainable=False)

    def logits(self, images, key=None):
        """Without a key: for evaluation."""
        if self.kind in ("module", "fused"):
            return self.model(images, key)
        return self.model(images, training=key is not None)

    def __call__(self, batch, key):
        places = tf.range(1, 33, dtype=tf.int64)
        self.order.assign((self.order * 31 + tf.reduce_sum(places * batch["number"])) % 1_000_000_007)
        with tf.GradientTape() as tape:
            logits = self.logits(batch["image"], key)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))
        metrics = self.update.apply(tape.gradient(loss, self.update.weights), self.update.weights)
        return {"loss": loss, "order": self.order.read_value(), **metrics}


def _noisy(example, key):
    """Augmentation."""
    return {**example, "image": example["image"] + 0.05 * tf.random.stateless_normal([64], key)}


def train(directory, kind, runner, steps, announce="start"):
    data = load_digits()
    arrays = {
        "image": (data.data / 16).astype(np.float32),
        "label": data.target.astype(np.int32),
        "number": np.arange(len(data.target)),
    }
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(arrays), seed=3).shuffle().map(_noisy)
    step = Classifier(kind)
    images, labels = tf.constant(arrays["image"][:200]), arrays["label"][:200]

    def evaluate():
        return {"accuracy": float(np.mean(np.argmax(step.logits(images), 1) == labels))}

    trainers.Trainer(
        step,
        pipeline.batch(32, drop_remainder=True),
        directory,
        runner=runner,
        steps_per_call=20,
        evaluate=evaluate,
        evaluate_every=trainers.every(epochs=0.5),
        checkpoint_every=25,
        log_every=3,
        best=trainers.Best("accuracy"),
        async_checkpoints=runner in ("graph", "xla_chunk"),
        hooks=[(announce, lambda _: print(f"pid {os.getpid()}", flush=True))],
    ).run(steps)
    final = {name: variable.numpy() for name, variable in step.named_variables().items()}
    np.savez(f"{directory}.npz", **final)


if __name__ == "__main__":
    serve(lambda job: exit_code(fork(train, job, fault=job.pop("fault", None))))
