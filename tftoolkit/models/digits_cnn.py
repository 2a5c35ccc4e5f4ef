"""A small convolutional network for 8×8 digits."""

import tensorflow as tf

# Compiled now if need be, and not in the middle of tracing a function.
from tftoolkit.custom_ops import rms_norm


class DigitsCnn(tf.Module):
    """Two 3×3 convolutions, 2×2 max pooling, RMSNorm over all features, and a linear classifier.

    The norm is over the features of the whole image, not over the channels of each pixel: blank pixels would have a
    mean square near zero, which 8 bits cannot hold, and the int8 file would be useless.

    Args:
      channels: outputs of the first convolution; the second has twice as many.
      dropout: probability with which an input of the classifier is dropped in training.
      seed: decides the initial weights.
    """

    def __init__(self, channels: int = 32, dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        features = 4 * 4 * 2 * channels
        self.first = tf.Variable(_he_normal((3, 3, 1, channels), (seed, 0)), name="first")
        self.first_bias = tf.Variable(tf.zeros(channels), name="first_bias")
        self.second = tf.Variable(_he_normal((3, 3, channels, 2 * channels), (seed, 1)), name="second")
        self.second_bias = tf.Variable(tf.zeros(2 * channels), name="second_bias")
        self.gamma = tf.Variable(tf.ones(features), name="gamma")
        self.classes = tf.Variable(_he_normal((features, 10), (seed, 2)), name="classes")
        self.classes_bias = tf.Variable(tf.zeros(10), name="classes_bias")
        self.dropout = dropout

    def __call__(self, images: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """Logits, float32 [batch, 10].

        Args:
          images: float32 [batch, 8, 8, 1] with values from 0 to 1.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        x = tf.nn.relu(tf.nn.conv2d(images, self.first, strides=1, padding="SAME") + self.first_bias)
        x = tf.nn.relu(tf.nn.conv2d(x, self.second, strides=1, padding="SAME") + self.second_bias)
        x = tf.nn.max_pool2d(x, ksize=2, strides=2, padding="VALID")
        x = rms_norm(tf.reshape(x, [-1, self.gamma.shape[0]]), self.gamma)
        if key is not None:
            x = tf.nn.experimental.stateless_dropout(x, rate=self.dropout, seed=key)
        return x @ self.classes + self.classes_bias


def _he_normal(shape: tuple[int, ...], seed: tuple[int, int]) -> tf.Tensor:
    """Weights for inputs behind a ReLU (He et al. 2015, https://arxiv.org/abs/1502.01852)."""
    fan_in = 1
    for size in shape[:-1]:
        fan_in *= size
    return tf.random.stateless_normal(shape, seed=seed) * (2 / fan_in) ** 0.5
