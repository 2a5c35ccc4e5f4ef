"""The steps of plain TensorFlow ops that random models are made of: elementwise, loops, branches, attention."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from draw import Draw

Step = Callable[[tf.Tensor], tf.Tensor]


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
