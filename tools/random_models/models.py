"""Random small models: Keras 3, tf_keras and tf.Module; convolutions, recurrent layers, attention, loops, branches."""

import dataclasses
import functools
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
Step = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """A model, its signatures as ``export`` takes them, and the names of what it is made of."""

    model: Any
    signatures: Mapping[str, tuple[Callable[..., Any], Sequence[tf.TensorSpec]]]
    parts: tuple[str, ...]


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


def scaled(d: Draw, shape: Sequence[int]) -> Step:
    weights = d.weights(shape[-1])
    return lambda h: h * (1 + 0.2 * weights)


def branch(d: Draw, shape: Sequence[int]) -> Step:
    negative = scaled(d, shape)
    return lambda h: tf.cond(tf.reduce_mean(h) > 0, lambda: tf.nn.relu(h) + 1, lambda: negative(h))


def loop(d: Draw, shape: Sequence[int]) -> Step:
    step, count = scaled(d, shape), d.size(1, 3)
    return lambda h: tf.while_loop(lambda i, _: i < count, lambda i, v: (i + 1, tf.tanh(step(v))), [0, h])[1]


def loop_over_rows(d: Draw, shape: Sequence[int]) -> Step:
    """Every element of axis 1 in turn, the last result carried on."""
    count = shape[1]

    def step(i: tf.Tensor, state: tf.Tensor, h: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return i + 1, tf.tanh(0.5 * state + tf.gather(h, i, axis=1)), h

    def run(h: tf.Tensor) -> tf.Tensor:
        state = tf.while_loop(lambda i, *_: i < count, step, [0, tf.zeros_like(h[:, 0]), h])[1]
        return h + state[:, tf.newaxis]

    return run


def loop_until(d: Draw, shape: Sequence[int]) -> Step:
    return lambda h: tf.while_loop(lambda v: tf.reduce_max(tf.abs(v)) > 1.0, lambda v: (v * 0.6,), [h])[0]


def switch(d: Draw, shape: Sequence[int]) -> Step:
    third = scaled(d, shape)

    def run(h: tf.Tensor) -> tf.Tensor:
        index = tf.cast(tf.reduce_sum(tf.cast(h > 0, tf.int32)) % 3, tf.int32)
        return tf.switch_case(index, [lambda: tf.nn.relu(h), lambda: h * 2, lambda: third(h)])

    return run


def mapped(d: Draw, shape: Sequence[int]) -> Step:
    return lambda h: tf.map_fn(lambda row: tf.tanh(row) + tf.reduce_mean(row), h)


def attention(d: Draw, shape: Sequence[int]) -> Step:
    """Scaled dot products of rows along axis 1, by einsum, sometimes causal."""
    projections = [d.weights(shape[-1], 2, 4) for _ in range(3)]
    out, causal = d.weights(2, 4, shape[-1]), d.chance(0.5)

    def run(h: tf.Tensor) -> tf.Tensor:
        q, k, v = (tf.einsum("btc,chd->bhtd", h, w) for w in projections)
        scores = tf.einsum("bhqd,bhkd->bhqk", q, k) / 2.0
        if causal:
            scores += tf.linalg.band_part(tf.fill([shape[1], shape[1]], -1e4), 0, -1) - tf.linalg.band_part(
                tf.fill([shape[1], shape[1]], -1e4), 0, 0
            )
        return h + tf.einsum("bhqk,bhkd,hdc->bqc", tf.nn.softmax(scores), v, out)

    return run


def reduced(d: Draw, shape: Sequence[int]) -> Step:
    reduce = d.one(tf.reduce_mean, tf.reduce_max, tf.reduce_min, tf.reduce_sum, tf.math.reduce_std, tf.reduce_logsumexp)
    axis = d.size(1, len(shape) - 1)
    return lambda h: h - reduce(h, axis, keepdims=True)


def elementwise(d: Draw, shape: Sequence[int]) -> Step:
    return d.one(
        tf.nn.relu6, tf.nn.elu, tf.nn.leaky_relu, tf.nn.crelu, tf.math.softplus, tf.abs, tf.square, tf.sin,
        tf.nn.log_softmax, tf.math.sign, tf.floor, tf.nn.gelu, tf.math.expm1, tf.math.cos, tf.nn.softmax,
        lambda h: tf.math.log(tf.abs(h) + 0.1), lambda h: tf.math.rsqrt(tf.square(h) + 0.1), lambda h: h / (1 + h * h),
        lambda h: tf.clip_by_value(h, -0.7, 0.4), lambda h: tf.maximum(h, 0.2 * h), lambda h: tf.pow(tf.abs(h), 1.5),
        lambda h: tf.math.squared_difference(h, 0.3), lambda h: tf.where(h > 0.2, h, -h), lambda h: tf.round(4 * h) / 4,
        lambda h: tf.math.floormod(h, 0.7), lambda h: tf.math.atan2(h, h * h + 0.1), lambda h: tf.nn.relu(1 - h),
        lambda h: tf.nn.relu(tf.minimum(h, 1.0)), lambda h: tf.math.xlogy(tf.abs(h), tf.abs(h) + 0.1),
    )  # fmt: skip


def rearranged(d: Draw, shape: Sequence[int]) -> Step:
    rank, last, axis = len(shape), shape[-1], d.size(1, len(shape) - 1)
    size = shape[axis]
    swap = [0, *(np.arange(1, rank)[::-1])]
    index = d.rng.integers(0, size, size)
    pads = [[0, 0], *([0, d.size(0, 2)] for _ in range(rank - 1))]
    half = max(1, last // 2)
    return d.one(
        lambda h: tf.transpose(h, swap),
        lambda h: tf.reshape(tf.reshape(h, [-1, int(np.prod(shape[1:]))]), [-1, *shape[1:]]),
        lambda h: tf.gather(h, index, axis=axis),
        lambda h: tf.pad(h, pads),
        lambda h: tf.pad(h, [[0, 0]] * (rank - 1) + [[1, 1]], mode="REFLECT") if last > 1 else h,
        lambda h: tf.reverse(h, [axis]),
        lambda h: tf.roll(h, 1, axis),
        lambda h: tf.tile(h, [1] * (rank - 1) + [2]),
        lambda h: tf.concat([h, -h], axis),
        lambda h: tf.concat(tf.split(h, [half, last - half], -1)[::-1], -1) if last > 1 else h,
        lambda h: tf.stack(tf.unstack(h, axis=axis)[::-1], axis),
        lambda h: h[:, ::2] if size > 2 else h,
        lambda h: h[..., -1:] * h,
        lambda h: tf.cumsum(h, axis),
        lambda h: tf.expand_dims(h, 1)[:, 0] + tf.broadcast_to(h[:, :1], tf.shape(h)),
        lambda h: tf.nn.top_k(h, half)[0],
        lambda h: tf.sort(h, -1),
        lambda h: h * tf.one_hot(tf.argmax(h, -1), last),
        lambda h: tf.linalg.l2_normalize(h, -1),
        lambda h: tf.matmul(h, h, transpose_b=True) if rank > 2 else h,
        lambda h: tf.scan(lambda a, b: 0.5 * a + b, h),
        lambda h: tf.gather_nd(h, [[0]]) + h,
    )  # fmt: skip


def raw_image(d: Draw, shape: Sequence[int]) -> Step:
    channels = shape[-1]
    kernel = d.weights(2, 3, channels, d.width)
    flat = d.weights(3, 3, channels, 1)
    height, width = d.size(3, 11), d.size(3, 11)
    corners, centers = d.one((True, False), (False, True), (False, False))
    return d.one(
        lambda h: tf.nn.conv2d(h, kernel, [1, 2, 1, 1], "SAME"),
        lambda h: tf.nn.conv2d(h, kernel, 1, [[0, 0], [1, 0], [2, 1], [0, 0]]),
        lambda h: tf.nn.conv2d(h, kernel, 1, "SAME", dilations=2),
        lambda h: tf.nn.relu(tf.nn.depthwise_conv2d(h, flat, [1, 1, 1, 1], "SAME", dilations=[2, 1])),
        lambda h: tf.compat.v1.image.resize_bilinear(h, [height, width], corners, half_pixel_centers=centers),
        lambda h: tf.compat.v1.image.resize_nearest_neighbor(h, [height, width], corners, half_pixel_centers=centers),
        lambda h: tf.image.resize(h, [height, width], "area"),
        lambda h: tf.nn.space_to_depth(h[:, : shape[1] // 2 * 2, : shape[2] // 2 * 2], 2),
        lambda h: tf.nn.local_response_normalization(h, 2),
        lambda h: tf.reduce_mean(h, [1, 2], keepdims=True) * h,
        lambda h: tf.image.flip_left_right(h),
    )  # fmt: skip


def shared_product(d: Draw, shape: Sequence[int]) -> Step:
    """One matrix twice, the second time transposed, with an activation that a converter may fuse."""
    matrix = d.weights(shape[-1], d.width)
    activation = d.one(tf.nn.relu, tf.nn.relu6, tf.tanh, tf.identity)
    return lambda h: activation(tf.matmul(activation(h @ matrix), matrix, transpose_b=True))


RAW: dict[str, Callable[[Draw, Sequence[int]], Step]] = {
    "elementwise": elementwise, "rearranged": rearranged, "reduced": reduced, "tied matrix": shared_product,
    "tf.cond": branch, "tf.while_loop": loop, "tf.while_loop with a condition on data": loop_until,
    "tf.switch_case": switch, "tf.map_fn": mapped,
}  # fmt: skip
RAW_OF_RANK: dict[int, dict[str, Callable[[Draw, Sequence[int]], Step]]] = {
    2: {},
    3: {"einsum attention": attention, "tf.while_loop over rows": loop_over_rows},
    4: {"image op": raw_image},
}


def raw_step(d: Draw, shape: Sequence[int]) -> tuple[str, Step]:
    """Often elementwise or rearranging, which have many variants, else anything."""
    table = RAW | RAW_OF_RANK[len(shape)]
    name = d.one("elementwise", "rearranged") if d.chance(0.4) else d.one(*table)
    return name, table[name](d, shape)


def applied(step: Any, hidden: Any) -> Any:
    """The step's output; None where the step does not fit its input, or blows it up."""
    layers = step if isinstance(step, list) else [step]
    try:
        result = functools.reduce(lambda h, layer: layer(h), layers, hidden)
    except (ValueError, tf.errors.InvalidArgumentError):  # a window larger than the image, for instance
        return None
    return result if 0 < np.prod(result.shape[1:]) <= MAX_SIZE else None


def keras_model(d: Draw) -> RandomModel:
    """A functional model, with residual branches, sometimes a second input, and a second output with shared layers."""
    kind = d.one(*SHAPES)
    batch = d.one(1, 4, 4, None)
    tokens = kind == "tokens"
    x = d.keras.Input(SHAPES[kind], batch_size=batch, name="x", dtype="int32" if tokens else "float32")
    hidden = d.layers.Embedding(VOCABULARY, d.width)(x) if tokens else x
    table = {2: FEATURE_LAYERS, 3: SEQUENCE_LAYERS, 4: IMAGE_LAYERS}[len(hidden.shape)]
    parts = [d.keras.__name__, kind, "free batch" if batch is None else f"batch of {batch}"]
    for _ in range(d.size(1, 4)):
        if d.chance(0.35):
            name, step = raw_step(d, hidden.shape)
            result = applied(d.layers.Lambda(step), hidden)
        else:
            name = d.one(*table)
            result = applied(table[name](d), hidden)
        if result is not None:
            parts.append(name)
            hidden = d.layers.Add()([result, d.layers.Activation("tanh")(result)]) if d.chance(0.2) else result
    hidden = d.layers.Flatten()(hidden)
    inputs = {"x": x}
    if d.chance(0.3):
        inputs["y"] = d.keras.Input([5], batch_size=batch, name="y")
        hidden = d.layers.Concatenate()([hidden, inputs["y"]])
    outputs = {"scores": d.layers.Dense(4, activation=d.one("linear", "softmax", "sigmoid"))(hidden)}
    if d.chance(0.3):
        shared = d.layers.Dense(8, activation=d.activation())
        outputs["second"] = d.layers.Dense(2)(shared(d.layers.Dense(8)(shared(d.layers.Dense(8)(hidden)))))
    model = d.keras.Model(inputs, outputs)
    specs = [tf.TensorSpec([batch, *tensor.shape[1:]], tensor.dtype, name) for name, tensor in inputs.items()]

    def call(*values: tf.Tensor) -> dict[str, tf.Tensor]:
        return model(dict(zip(inputs, values, strict=True)), training=False)

    return RandomModel(model, {"serving_default": (call, specs)}, tuple(parts))


def module(d: Draw) -> RandomModel:
    """A tf.Module of raw ops, sometimes with more than one signature."""
    kind = d.one("images", "odd images", "sequence", "features")
    batch = d.one(1, 4, 4, None)
    shape = SHAPES[kind]
    steps: list[Step] = []
    parts = ["tf.Module", kind, "free batch" if batch is None else f"batch of {batch}"]
    hidden = tf.constant(d.rng.standard_normal([batch or FREE, *shape]).astype(np.float32))
    for _ in range(d.size(2, 6)):
        name, step = raw_step(d, hidden.shape)
        result = applied(step, hidden)
        if result is not None:
            steps.append(step)
            parts.append(name)
            hidden = result
    size = int(np.prod(hidden.shape[1:]))
    holder = tf.Module()
    holder.head = tf.Variable(d.array(size, 6))

    def body(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(functools.reduce(lambda h, step: step(h), steps, x), [-1, size])

    def scores(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"scores": body(x) @ holder.head}

    def best(x: tf.Tensor) -> dict[str, tf.Tensor]:
        found = body(x) @ holder.head
        return {"best": tf.argmax(found, -1, tf.int32), "highest": tf.reduce_max(found, -1)}

    def distance(x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"distance": tf.norm(body(x) - body(y) + 0.1, axis=-1), "sum": tf.nn.relu(body(x) + body(y))}

    specs = [tf.TensorSpec([batch, *shape], tf.float32, name) for name in ("x", "y")]
    signatures: dict[str, tuple[Callable[..., Any], list[tf.TensorSpec]]] = {"serving_default": (scores, specs[:1])}
    if d.chance(0.3):
        signatures["best"] = (best, specs[:1])
        parts.append("integer output")
    if d.chance(0.3):
        signatures["distance"] = (distance, specs)
    return RandomModel(holder, signatures, (*parts, f"{len(signatures)} signatures"))


def random_model(seed: int) -> RandomModel:
    """The same model for the same seed."""
    d = Draw(seed)
    return d.one(keras_model, keras_model, module)(d)
