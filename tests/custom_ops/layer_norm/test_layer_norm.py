"""layer_norm against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.layer_norm.cases import CASES
from tftoolkit.custom_ops.opcheck import arguments

EPSILON = 1e-5
assert custom_ops.layer_norm  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("LayerNorm", "AddLayerNorm", "LayerNormGrad")]
FAST = CASES[:6]


def plain(x, gamma, beta=None):
    """In the dtype of its arguments."""
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    y = (x - mean) / tf.sqrt(variance + tf.cast(EPSILON, x.dtype)) * gamma
    return y if beta is None else y + beta


def plain_with_residual(x, residual, gamma, beta):
    return plain(x + residual, gamma, beta), x + residual


def fused(x, residual, gamma, beta):
    return custom_ops.layer_norm(x, gamma, beta, residual, epsilon=EPSILON)


def tensors(case):
    """x, gamma, beta and a residual that adds to x without a rounding, so that the sum is one number in all dtypes."""
    x = tf.round(8 * op_values.normal(case.shape, "float32")) / 8
    residual = tf.round(8 * op_values.normal(case.shape, "float32", 1)) / 8
    gamma, beta = (op_values.normal(case.shape[-1:], case.dtype, seed) for seed in (2, 3))
    return tf.cast(x, case.dtype), tf.cast(residual, case.dtype), gamma, beta


def label(case) -> str:
    return "x".join(map(str, case.shape)) + "-" + case.dtype


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in FAST), id=label(c)) for c in CASES]
)
def test_values_and_gradients(case, mode):
    x, residual, gamma, beta = tensors(case)
    without = lambda x, gamma: custom_ops.layer_norm(x, gamma, epsilon=EPSILON)  # noqa: E731
    # The gradient of a row of one is 0, but a rounding of dy * gamma, times 1 / sqrt(epsilon), may be left.
    absolute = 4 * 2.0**-24 / np.sqrt(EPSILON) if case.shape[-1] == 1 else 0.0
    op_values.check(without, plain, [x, gamma], mode, absolute)
    op_values.check(fused, plain_with_residual, [x, residual, gamma, beta], mode, absolute)


def test_with_beta_alone():
    x, _, gamma, beta = tensors(CASES[0])
    op_values.check(lambda *all: custom_ops.layer_norm(*all, epsilon=EPSILON), plain, [x, gamma, beta], "eager")


@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
@pytest.mark.slow
def test_opcheck(op):
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


@pytest.mark.parametrize("mean", [1e3, 1e5, -3e6])
def test_a_large_mean_costs_no_digits(mean):
    """x - mean is exact here, so that what is left are a few roundings of the result."""
    rng = np.random.default_rng(0)
    x = np.float32(mean + rng.standard_normal((5, 1000)) * abs(mean) / 1000)
    gamma, dy = (tf.constant(rng.standard_normal(shape), tf.float32) for shape in (1000, (5, 1000)))
    run = op_values.with_gradients(lambda x, gamma: custom_ops.layer_norm(x, gamma, epsilon=0.0))
    exact = op_values.with_gradients(
        lambda x, gamma: (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.math.reduce_std(x, -1, keepdims=True) * gamma
    )
    found = run([tf.constant(x), gamma], [dy])
    right = exact(op_values.at(tf.float64, [tf.constant(x), gamma]), op_values.at(tf.float64, [dy]))
    for one, value in zip(found, right, strict=True):
        assert np.abs(tf.cast(one, tf.float64) - value).max() <= 2e-6 * np.abs(value).max()


def test_a_row_of_one():
    """It is its own mean, so y is beta, and x has no gradient."""
    x, gamma, beta = tf.constant([[3.0], [-1e30]]), tf.ones(1), tf.constant([0.25])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = custom_ops.layer_norm(x, gamma, beta)
    np.testing.assert_array_equal(y, [[0.25], [0.25]])
    np.testing.assert_array_equal(tape.gradient(y, x), [[0.0], [0.0]])


def test_not_a_number_stays_in_its_row():
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    x[1, 2] = np.nan
    for residual in (None, np.ones_like(x)):
        y = custom_ops.layer_norm(x, np.ones(8, np.float32), None, residual)
        y = y if residual is None else y[0]
        assert np.isnan(y).all(axis=1).tolist() == [False, True, False]


def test_per_example_gradients_inside_vectorized_map():
    x, _, gamma, beta = tensors(CASES[0])

    def gradients(x):
        with tf.GradientTape() as tape:
            tape.watch([gamma, beta])
            y = tf.sin(custom_ops.layer_norm(x, gamma, beta))
        return tape.gradient(y, [gamma, beta])

    for stacked, single in zip(tf.vectorized_map(gradients, x), zip(*map(gradients, x), strict=True), strict=True):
        np.testing.assert_array_equal(stacked, single)


def test_wrong_arguments():
    x, gamma = np.ones((2, 8), np.float32), np.ones(8, np.float32)
    for wrong, message in [
        (lambda: custom_ops.layer_norm(x, gamma[:7]), r"gamma has shape \[7\], but its dimension d must be 8 as in x"),
        (lambda: custom_ops.layer_norm(x, gamma, gamma[:1]), r"beta has shape \[1\], but its dimension d must be 8"),
        (lambda: custom_ops.layer_norm(x, gamma, None, x[:1]), "residual has shape"),
        (lambda: custom_ops.layer_norm(np.float32(1), gamma), "x has shape .* at least 1 dimension"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        custom_ops.layer_norm(x, gamma, epsilon=float("nan"))
