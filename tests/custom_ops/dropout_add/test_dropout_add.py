"""dropout_add's mask is Philox's, a function of key and index alone; values and gradients follow it in every mode."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.dropout_add.cases import CASES
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import arguments

assert custom_ops.dropout_add  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("DropoutAdd", "DropoutAddGrad")]
FAST = CASES[:9]
KEY = np.array([2**40 + 17, -5])
RATE = 0.3


def kept(shape, key=KEY, rate=RATE):
    """By TensorFlow's own Philox, which takes two 64-bit words of counter and one of key."""
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    words = [int(low[0]) | int(low[1]) << 32, 0, int(high[0]) | int(high[1]) << 32]
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[int(np.prod(shape))], key=tf.constant(words[:1], tf.uint64), counter=tf.constant(words[1:], tf.uint64),
        alg=1, dtype=tf.uint32,
    )  # fmt: skip
    return bits.numpy().reshape(shape) >= round(rate * 2**32)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    x, residual = (op_values.normal(case.shape, case.dtype, seed) for seed in (0, 1))
    mask = kept(case.shape)
    op_values.check(
        lambda x, residual: custom_ops.dropout_add(x, residual, KEY, rate=RATE),
        lambda x, residual: residual + tf.where(mask, x / (1 - RATE), 0),
        [x, residual], mode,
    )  # fmt: skip


@pytest.mark.parametrize("rate", [0.0, 1e-3, 0.1, 0.5, 0.9, 1 - 2**-20])
def test_as_many_elements_are_dropped_as_the_rate_says(rate):
    n = 1_000_000
    ones = tf.ones(n)
    y = custom_ops.dropout_add(ones, tf.zeros(n), [3, 4], rate=rate).numpy()
    np.testing.assert_array_equal(y != 0, kept((n,), np.array([3, 4]), rate))
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs(np.mean(y == 0) - rate) <= 5 * np.sqrt(rate * (1 - rate) / n)


def mask_of(shape, key, dtype=tf.float32):
    return np.asarray(custom_ops.dropout_add(tf.ones(shape, dtype), tf.zeros(shape, dtype), key, rate=0.5) != 0)


def test_the_mask_depends_on_key_and_index_alone():
    whole = mask_of([70_001], [1, 2])
    np.testing.assert_array_equal(mask_of([7, 10_000], [1, 2]).reshape(-1), whole[:70_000])
    np.testing.assert_array_equal(mask_of([9], [1, 2]), whole[:9])
    np.testing.assert_array_equal(mask_of([70_001], [1, 2], tf.bfloat16), whole)
    negative = [mask_of([1000], tf.constant([1, -2], dtype)) for dtype in (tf.int32, tf.int64)]
    np.testing.assert_array_equal(*negative)


def test_other_keys_give_independent_masks():
    keys = [[0, 0], [1, 0], [0, 1], [2**32, 0], [0, 2**32], [-1, 0], [0, -1]]
    masks = np.array([mask_of([100_000], tf.constant(key, tf.int64)) for key in keys], np.float64) - 0.5
    correlations = 4 * (masks @ masks.T) / masks.shape[1]
    assert np.abs(correlations - np.eye(len(keys))).max() <= 5 / np.sqrt(masks.shape[1])


def test_what_is_dropped_leaves_no_trace():
    """Not even NaN, and not in the gradient."""
    x = tf.fill([1000], np.nan)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = custom_ops.dropout_add(x, tf.zeros(1000), [1, 2], rate=0.5)
    mask = mask_of([1000], [1, 2])
    np.testing.assert_array_equal(np.isnan(y), mask)
    np.testing.assert_array_equal(tape.gradient(y, x), 2.0 * mask)


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


def test_wrong_arguments():
    x = tf.ones([2, 3])
    for wrong, message in [
        (lambda: custom_ops.dropout_add(x, x[:1], [1, 2], rate=0.5), "residual has shape"),
        (lambda: custom_ops.dropout_add(x, x, [1, 2, 3], rate=0.5), r"key has shape \[3\]"),
        (lambda: OPS[0](x, x, [1, 2], rate=1.5), "rate must be at least 0 and less than 1, but is 1.5"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()
    for rate in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="rate must be at least 0 and less than 1"):
            custom_ops.dropout_add(x, x, [1, 2], rate=rate)
