"""A network for the rows of a table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


class TabularNetwork(tf.Module):
    """Numbers beside embedded categories, behind them hidden layers with ReLU.

    Args:
      numbers: how many columns of numbers there are.
      vocabularies: for each column of categories, how many different ones.
      outputs: classes, or 1 for a regression.
      hidden: sizes of the hidden layers.
      embedding: length of the vector that stands for a category.
      dropout: probability with which an output of a hidden layer is dropped in training.
      seed: decides the first weights.
    """

    def __init__(
        self,
        numbers: int,
        vocabularies: Sequence[int],
        outputs: int,
        *,
        hidden: Sequence[int] = (64, 64),
        embedding: int = 4,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.embeddings = [
            tf.Variable(0.1 * rng.standard_normal([size, embedding]), dtype=tf.float32) for size in vocabularies
        ]
        widths = [numbers + embedding * len(vocabularies), *hidden, outputs]
        self.kernels = [
            tf.Variable(rng.standard_normal([rows, columns]) * (2 / rows) ** 0.5, dtype=tf.float32)
            for rows, columns in itertools.pairwise(widths)
        ]
        self.biases = [tf.Variable(tf.zeros(width)) for width in widths[1:]]
        self.dropout = dropout

    def __call__(self, numbers: tf.Tensor, categories: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [batch, outputs].

        Args:
          numbers: float32 [batch, numbers].
          categories: integers [batch, number of vocabularies], from 0.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        parts = [tf.gather(table, categories[:, i]) for i, table in enumerate(self.embeddings)]
        x = tf.concat([numbers, *parts], axis=1)
        for i, (kernel, bias) in enumerate(zip(self.kernels[:-1], self.biases[:-1], strict=True)):
            x = tf.nn.relu(x @ kernel + bias)
            if key is not None and self.dropout:
                x = tf.nn.experimental.stateless_dropout(x, self.dropout, tf.random.fold_in(key, i))
        return x @ self.kernels[-1] + self.biases[-1]
