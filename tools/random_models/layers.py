"""The Keras layers that random models are made of."""

from collections.abc import Callable
from typing import Any

from draw import Draw

Layers = dict[str, Callable[[Draw], Any]]


def conv(d: Draw) -> Any:
    strides, dilation = d.one((1, 1), (2, 1), (1, 2))
    return d.layers.Conv2D(
        d.width, (d.size(1, 3), d.size(1, 3)), strides, d.one("same", "valid"), dilation_rate=dilation,
        groups=1, activation=d.activation(),
    )  # fmt: skip


def self_attention(d: Draw) -> Any:
    layer = d.layers.MultiHeadAttention(2, 4)
    return lambda h: layer(h, h)


# From a name to what makes a layer, or a list of them.
IMAGE_LAYERS: Layers = {
    "Conv2D": conv,
    "Conv2D, two groups": lambda d: [
        d.layers.Conv2D(d.width, 1),
        d.layers.Conv2D(d.width, 3, padding="same", groups=2, activation=d.activation()),
    ],
    "DepthwiseConv2D": lambda d: d.layers.DepthwiseConv2D(
        d.size(2, 3), d.one(1, 2), "same", depth_multiplier=d.one(1, 2), activation=d.activation()
    ),
    "SeparableConv2D": lambda d: d.layers.SeparableConv2D(d.width, 3, padding=d.one("same", "valid")),
    "Conv2DTranspose": lambda d: d.layers.Conv2DTranspose(
        d.width, d.size(2, 3), d.one(1, 2), d.one("same", "valid"), activation=d.activation()
    ),
    "BatchNormalization": lambda d: [d.layers.BatchNormalization(), d.layers.Activation(d.activation())],
    "GroupNormalization": lambda d: [d.layers.Conv2D(d.width, 1), d.layers.GroupNormalization(2)],
    "PReLU": lambda d: d.layers.PReLU(shared_axes=[1, 2], alpha_initializer="glorot_uniform"),
    "AveragePooling2D": lambda d: d.layers.AveragePooling2D(2, d.one(1, 2), d.one("same", "valid")),
    "MaxPooling2D": lambda d: d.layers.MaxPooling2D(d.size(2, 3), d.one(1, 2), d.one("same", "valid")),
    "UpSampling2D": lambda d: d.layers.UpSampling2D(2, interpolation=d.one("nearest", "bilinear")),
    "ZeroPadding2D": lambda d: d.layers.ZeroPadding2D(((1, 0), (2, 1))),
    "Cropping2D": lambda d: d.layers.Cropping2D(((1, 0), (0, 1))),
}
SEQUENCE_LAYERS: Layers = {
    "LSTM": lambda d: d.layers.LSTM(d.width, return_sequences=True, unroll=d.chance(0.7)),
    "GRU": lambda d: d.layers.GRU(
        d.width, return_sequences=True, unroll=d.chance(0.7), go_backwards=d.chance(0.3)
    ),
    "SimpleRNN": lambda d: d.layers.SimpleRNN(d.width, return_sequences=True, unroll=d.chance(0.7)),
    "Bidirectional": lambda d: d.layers.Bidirectional(
        d.one(d.layers.LSTM, d.layers.GRU)(d.width, return_sequences=True, unroll=d.chance(0.7))
    ),
    "LayerNormalization": lambda d: [
        d.layers.Dense(d.width, activation=d.activation()), d.layers.LayerNormalization()
    ],
    "Conv1D": lambda d: d.layers.Conv1D(
        d.width, d.size(2, 3), padding=d.one("causal", "same"), dilation_rate=d.one(1, 2), activation=d.activation()
    ),
    "MultiHeadAttention": self_attention,
    "MaxPooling1D": lambda d: d.layers.MaxPooling1D(2, 1, "same"),
    "Permute": lambda d: [d.layers.Permute((2, 1)), d.layers.Dense(d.width), d.layers.Permute((2, 1))],
}  # fmt: skip
FEATURE_LAYERS: Layers = {
    "Dense": lambda d: d.layers.Dense(d.width, activation=d.activation()),
    "LayerNormalization": lambda d: d.layers.LayerNormalization(),
    "BatchNormalization": lambda d: d.layers.BatchNormalization(),
    "UnitNormalization": lambda d: d.layers.UnitNormalization(),
    "Softmax": lambda d: d.layers.Softmax(),
    "RepeatVector": lambda d: [
        d.layers.RepeatVector(3), d.layers.LSTM(d.width, unroll=d.chance(0.7)), d.layers.Dense(d.width)
    ],
}  # fmt: skip
