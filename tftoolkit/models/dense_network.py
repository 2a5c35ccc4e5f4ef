"""Dense layers, one behind the other."""

import itertools

import numpy as np
import tensorflow as tf


class DenseNetwork(tf.Module):
    """Dense layers with ReLU in between.

    Args:
      widths: of the input, the hidden layers and the output.
      dropout: probability with which an output of a hidden layer is dropped in training.
      seed: decides the first weights.
    """

    def __init__(self, *widths: int, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        pairs = list(itertools.pairwise(widths))
        self.kernels = [tf.Variable(rng.normal(size=p, scale=(2 / p[0]) ** 0.5), dtype=tf.float32) for p in pairs]
        self.biases = [tf.Variable(tf.zeros(width)) for width in widths[1:]]
        self.dropout = dropout

    def __call__(self, x: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [..., widths[0]] → [..., widths[-1]].

        Args:
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        for i, (kernel, bias) in enumerate(zip(self.kernels[:-1], self.biases[:-1], strict=True)):
            x = tf.nn.relu(x @ kernel + bias)
            if key is not None and self.dropout:
                x = tf.nn.experimental.stateless_dropout(x, self.dropout, tf.random.fold_in(key, i))
        return x @ self.kernels[-1] + self.biases[-1]
