"""What the examples share: a network, real data, and training in a temporary folder."""

import itertools
import tempfile

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tftoolkit import pipelines, trainers


class Mlp(tf.Module):
    """Dense layers with relu in between: ``x [..., widths[0]] -> [..., widths[-1]]``."""

    def __init__(self, *widths: int, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        shapes = list(itertools.pairwise(widths))
        self.kernels = [tf.Variable(rng.normal(size=s, scale=(2 / s[0]) ** 0.5), dtype=tf.float32) for s in shapes]
        self.biases = [tf.Variable(tf.zeros(width)) for width in widths[1:]]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = tf.nn.relu(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]


def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """1,397 training and 400 test examples of handwritten digits: "image" float32[64] in [0, 1], "label" int32."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int32)
    return {"image": images[400:], "label": labels[400:]}, {"image": images[:400], "label": labels[:400]}


def accuracy(model: Mlp, images: np.ndarray | tf.Tensor, labels: np.ndarray) -> float:
    """The share of images that the model gives the right label."""
    return float(np.mean(np.argmax(model(tf.convert_to_tensor(images)), -1) == labels))


def train(step: trainers.Step, data: dict[str, np.ndarray], *, batch_size: int, steps: int) -> None:
    """Shuffled batches, compiled, nothing kept."""
    pipeline = pipelines.Pipeline(pipelines.sources.arrays(data), seed=0).shuffle()
    batches = pipeline.batch(batch_size, drop_remainder=True)
    with tempfile.TemporaryDirectory() as directory:
        trainers.Trainer(step, batches, directory, log_every=max(1, steps // 10)).run(steps)
