"""A network for the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tftoolkit.models.dense_network import DenseNetwork


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
        width = numbers + embedding * len(vocabularies)
        self.layers = DenseNetwork(width, *hidden, outputs, dropout=dropout, seed=seed)

    def __call__(self, numbers: tf.Tensor, categories: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """float32 [batch, outputs].

        Args:
          numbers: float32 [batch, numbers].
          categories: integers [batch, number of vocabularies], from 0.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        parts = [tf.gather(table, categories[:, i]) for i, table in enumerate(self.embeddings)]
        return self.layers(tf.concat([numbers, *parts], axis=1), key)
