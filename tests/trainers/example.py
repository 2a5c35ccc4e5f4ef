"""Steps that the tests train on scikit-learn's digits."""

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

from tftoolkit import pipelines, trainers


def _weight(*shape: int) -> tf.Variable:
    return tf.Variable(tf.random.stateless_normal(shape, seed=[len(shape), sum(shape)]) / shape[-2] ** 0.5)


class Mlp(tf.Module):
    """64-32-10 with dropout."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = dropout
        self.hidden = _weight(64, 32)
        self.bias = tf.Variable(tf.zeros([32]))
        self.output = _weight(32, 10)

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        hidden = tf.nn.relu(images @ self.hidden + self.bias)
        return tf.nn.experimental.stateless_dropout(hidden, self.dropout, seed=key) @ self.output


class Cnn(tf.Module):
    """A strided and a plain convolution, pooling, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _weight(3, 3, 1, 4)
        self.second = _weight(3, 3, 4, 8)
        self.output = _weight(32, 10)

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        x = tf.reshape(images, [-1, 8, 8, 1])
        x = tf.nn.relu(tf.nn.conv2d(x, self.first, 2, "SAME"))
        x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, self.second, 1, "SAME")), 2, 2, "SAME")
        return tf.nn.experimental.stateless_dropout(tf.reshape(x, [-1, 32]), 0.2, seed=key) @ self.output


class Attention(tf.Module):
    """One attention layer over the 8 rows of an image, with an embedding look-up (sparse gradients) and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = _weight(17, 16)
        self.qkv = _weight(16, 48)
        self.gain = tf.Variable(tf.ones([16]))
        self.output = _weight(16, 10)

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        tokens = tf.cast(tf.reshape(images, [-1, 8, 8])[:, :, 3] * 16, tf.int32)
        x = tf.gather(self.embedding, tokens)
        x = x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + 1e-6) * self.gain
        q, k, v = tf.split(x @ self.qkv, 3, axis=-1)
        x += tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / 4.0) @ v
        return tf.nn.experimental.stateless_dropout(tf.reduce_mean(x, 1), 0.1, seed=key) @ self.output


class Classifier(trainers.Step):
    def __init__(self, model: tf.Module, optimizer: trainers.optimizers.Optimizer | None = None) -> None:
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, optimizer or trainers.optimizers.AdamW(3e-3), clip_norm=1.0)
        self.python_calls = 0

    def __call__(self, batch: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        self.python_calls += 1
        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(batch["image"], key)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))
        hits = tf.cast(tf.argmax(logits, 1, output_type=tf.int32) == batch["label"], tf.float32)
        return {
            "loss": loss,
            "accuracy": tf.reduce_mean(hits),
            **self.update.apply(tape.gradient(loss, weights), weights),
        }


def digits() -> dict[str, np.ndarray]:
    data = load_digits()
    return {"image": (data.data / 16).astype(np.float32), "label": data.target.astype(np.int32)}


def pipeline(drop_remainder: bool = True) -> pipelines.Pipeline:
    """Not shuffled: to trace the permutation takes longer than most tests train."""
    return pipelines.Pipeline(pipelines.sources.arrays(digits()), seed=3).batch(32, drop_remainder=drop_remainder)


def values(step: trainers.Step) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in step.named_variables().items()}
