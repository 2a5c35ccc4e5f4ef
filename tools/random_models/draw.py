"""Random choices of which random models are made, and what such a model is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras

VOCABULARY = 20
FREE = 4  # examples where the batch size is free
ACTIVATIONS = (
    "relu", "tanh", "gelu", "sigmoid", "elu", "relu6", "leaky_relu", "silu", "softplus", "selu", "softsign",
    "hard_sigmoid", "mish", "exponential",
)  # fmt: skip
SHAPES = {"images": (8, 8, 3), "odd images": (9, 7, 3), "sequence": (6, 8), "tokens": (5,), "features": (12,)}
MAX_SIZE = 5000  # of one example after any step


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A model, its signatures as ``export`` takes them, and the names of what it is made of.

    ``values``: by the names of inputs what they hold, if not standard normal numbers or tokens.
    """

    model: Any
    signatures: Mapping[str, tuple[Callable[..., Any], Sequence[tf.TensorSpec]]]
    parts: tuple[str, ...]
    values: Mapping[str, Callable[[np.random.Generator, Sequence[int]], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )


class Draw:
    """Random choices, and the layers of one of the two Keras generations."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.keras = keras if self.chance(0.7) else tf_keras
        self.keras.utils.set_random_seed(seed)
        self.layers = self.keras.layers
        self.width = 2 * self.size(2, 20)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def size(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high, endpoint=True))

    def one(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def activation(self) -> str:
        name = self.one(*ACTIVATIONS)
        return "relu" if name == "leaky_relu" and self.keras is tf_keras else name

    def weights(self, *shape: int) -> tf.Variable | tf.Tensor:
        """Mostly variables; some models on disk have constants instead."""
        return tf.constant(self.array(*shape)) if self.chance(0.1) else tf.Variable(self.array(*shape))

    def array(self, *shape: int) -> np.ndarray:
        return (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
