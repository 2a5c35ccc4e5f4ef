"""The classifiers of tutorials, in Keras 3: what people train first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def convolutional_classifier(
    image_size: int = 28, channels: int = 1, filters: int = 32, hidden: int = 64, classes: int = 10, seed: int = 0
) -> Any:
    """A 3×3 convolution, 2×2 max pooling and a hidden layer before the classes: a Keras 3 model.

    float32 [batch, image_size, image_size, channels] → logits [batch, classes].

    Args:
      filters: of the convolution.
      hidden: size of the hidden layer.
      seed: of Keras' generator, which draws the first weights.
    """
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([image_size, image_size, channels]),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(hidden, activation="relu"),
            layers.Dense(classes),
        ]
    )


def dense_classifier(
    image_size: int = 28,
    channels: int = 1,
    hidden: Sequence[int] = (64, 64),
    classes: int = 10,
    dropout: float = 0.0,
    batch_norm: bool = False,
    leaky: bool = False,
    seed: int = 0,
) -> Any:
    """Hidden layers on all pixels at once: a Keras 3 model.

    float32 [batch, image_size, image_size, channels] → logits [batch, classes].

    Args:
      hidden: sizes of the hidden layers.
      dropout: probability with which an output of a hidden layer is dropped in training.
      batch_norm: normalise before each activation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).
      leaky: LeakyReLU (slope 0.1 below zero) in place of ReLU.
    """
    import keras

    keras.utils.set_random_seed(seed)
    layers = keras.layers
    parts = [keras.Input([image_size, image_size, channels]), layers.Flatten()]
    for i, size in enumerate(hidden):
        parts.append(layers.Dense(size, use_bias=not batch_norm))
        if batch_norm:
            parts.append(layers.BatchNormalization())
        parts.append(layers.LeakyReLU(0.1) if leaky else layers.ReLU())
        if dropout:
            parts.append(layers.Dropout(dropout, seed=seed + i))
    return keras.Sequential([*parts, layers.Dense(classes)])
