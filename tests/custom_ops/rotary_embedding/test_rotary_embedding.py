"""rotary_embedding against float64, in every mode, also at position 1e6; its gradient turns back."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.rotary_embedding.cases import CASES, arguments

assert custom_ops.rotary_embedding  # loads the library
OP = ops.find("TfToolkit>RotaryEmbedding")
FAST = CASES[:6]


def plain(x, positions=None, base=10000.0, dim=None, interleaved=False, start=0):
    """As complex numbers, with angles in float64; the products in the dtype of x."""
    positions = start + np.arange(x.shape[1]) if positions is None else np.asarray(positions)
    positions = positions[None] if positions.ndim == 1 else positions
    dim = dim or x.shape[3]
    angles = positions[:, :, None, None] * base ** (-np.arange(0, dim, 2) / dim)
    cosines, sines = (tf.constant(f(angles), x.dtype) for f in (np.cos, np.sin))
    turned = x[..., :dim]
    if interleaved:
        pairs = tf.reshape(turned, [*x.shape[:3], dim // 2, 2])
        a, b = pairs[..., 0], pairs[..., 1]
    else:
        a, b = tf.split(turned, 2, axis=-1)
    both = [a * cosines - b * sines, a * sines + b * cosines]
    joined = tf.reshape(tf.stack(both, -1), turned.shape) if interleaved else tf.concat(both, -1)
    return tf.concat([joined, x[..., dim:]], -1)


OPTIONS = [
    {},
    {"interleaved": True, "start": 17},
    {"dim": 2, "base": 500.0},
    {"positions": [1_000_000], "interleaved": True},
]


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    x = op_values.normal(case.shape, case.dtype)
    for given in OPTIONS:
        options = dict(given)
        if "positions" in options:
            options["positions"] = np.arange(case.shape[1], dtype=np.int64) * 7 + options["positions"]
        op_values.check(
            lambda x, options=options: custom_ops.rotary_embedding(x, **options),
            lambda x, options=options: plain(x, **options),
            [x], mode,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_each_row_with_positions_of_its_own(dtype):
    x = op_values.normal((3, 5, 2, 8), "float32")
    positions = np.random.default_rng(0).integers(-50, 1_000_000, (3, 5)).astype(dtype)
    op = lambda x: custom_ops.rotary_embedding(x, positions)  # noqa: E731
    op_values.check(op, lambda x: plain(x, positions), [x], "eager")
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = op(x)
    np.testing.assert_allclose(tape.gradient(y, x, output_gradients=y), x, rtol=0, atol=2e-6)  # turned there and back


@pytest.mark.parametrize("position", [0, 1, 1_000_000, 2**20, 2**31 - 1])
def test_angles_of_large_positions_are_right_to_float32(position):
    x = tf.ones([1, 1, 1, 256])
    y = custom_ops.rotary_embedding(x, [position])
    allowed = 4e-7 if position <= 2**20 else 2e-6
    assert np.abs(tf.cast(y, tf.float64) - plain(tf.cast(x, tf.float64), [position])).max() <= allowed


def test_products_depend_on_the_distance_alone():
    """What the embedding is for: <turn(q, m), turn(k, n)> is a function of m - n."""
    q, k = (op_values.normal((1, 1, 1, 64), "float32", seed) for seed in (0, 1))

    def product(m, n):
        return tf.reduce_sum(custom_ops.rotary_embedding(q, start=m) * custom_ops.rotary_embedding(k, start=n))

    np.testing.assert_allclose(product(12, 5), product(1012, 1005), rtol=0, atol=1e-5)


def test_second_order_gradient():
    x, weights = (op_values.normal((2, 3, 2, 4), "float32", seed) for seed in (0, 1))
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(custom_ops.rotary_embedding(x) ** 3 * weights)
        loss = tf.reduce_sum(inner.gradient(y, x) ** 2)
    with tf.GradientTape() as plain_outer:
        plain_outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf.reduce_sum(plain(x) ** 3 * weights)
        right = tf.reduce_sum(inner.gradient(y, x) ** 2)
    np.testing.assert_allclose(outer.gradient(loss, x), plain_outer.gradient(right, x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("interleaved", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_opcheck(interleaved):
    inputs, attributes = arguments()
    custom_ops.opcheck(OP, *inputs, **attributes, interleaved=interleaved)


def test_static_shapes_and_unknown_ranks():
    spec = [tf.TensorSpec([None, None, 4, 8], tf.float32), tf.TensorSpec([None, None], tf.int32)]
    traced = tf.function(custom_ops.rotary_embedding, autograph=False).get_concrete_function(*spec)
    assert traced.outputs[0].shape.as_list() == [None, None, 4, 8]


def test_wrong_arguments():
    x = np.ones((2, 3, 1, 8), np.float32)
    for wrong, message in [
        (lambda: custom_ops.rotary_embedding(x[..., :7]), "dim must be even and from 2 to the depth of x, 7, but is 7"),
        (lambda: custom_ops.rotary_embedding(x, dim=10), "dim must be even and from 2 to the depth of x, 8, but is 10"),
        (lambda: custom_ops.rotary_embedding(x, np.zeros((4, 3), np.int32)), "positions has 4 rows, but must have 1"),
        (lambda: custom_ops.rotary_embedding(x, np.zeros(2, np.int32)), r"positions has shape \[1,2\]"),
        (lambda: custom_ops.rotary_embedding(x, np.full(3, 2**31)), "positions must fit into 32 bits"),
        (lambda: custom_ops.rotary_embedding(x[0]), "x has shape .* 4 dimensions"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()
    for options, message in [
        ({"dim": 3}, "dim must be even and positive"),
        ({"base": 0.0}, "base must be positive"),
        ({"positions": [0, 1, 2], "start": 1}, "start = 1 is for positions that are counted"),
    ]:
        with pytest.raises(ValueError, match=message):
            custom_ops.rotary_embedding(x, **options)
