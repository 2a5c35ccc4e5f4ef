"""Dense layers, one behind the other."""

import itertools

import numpy as np
import tensorflow as tf


class DenseNetwork(tf.Module):
    """Dense layers with ReLU in between: ``x [..., widths[0]] → [..., widths[-1]]``; ``seed`` decides the weights."""

    def __init__(self, *widths: int, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        pairs = list(itertools.pairwise(widths))
        self.kernels = [tf.Variable(rng.normal(size=p, scale=(2 / p[0]) ** 0.5), dtype=tf.float32) for p in pairs]
        self.biases = [tf.Variable(tf.zeros(width)) for width in widths[1:]]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            x = tf.nn.relu(x @ kernel + bias)
        return x @ self.kernels[-1] + self.biases[-1]
