"""swiglu against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import arguments
from tftoolkit.custom_ops.swiglu.cases import CASES

assert custom_ops.swiglu  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("Swiglu", "SwigluGrad")]
FAST = CASES[:9]


def plain(gate, up):
    return tf.nn.silu(gate) * up


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    gate, up = (4 * op_values.normal(case.shape, case.dtype, seed) for seed in (0, 1))
    op_values.check(custom_ops.swiglu, plain, [gate, up], mode)


def test_relative_error_also_where_the_sigmoid_is_small():
    """A few units in the last place, far to the left as well."""
    gate = tf.constant(np.linspace(-80, 80, 100_001), tf.float32)
    y = custom_ops.swiglu(gate, tf.ones_like(gate)).numpy().astype(np.float64)
    wide = gate.numpy().astype(np.float64)
    right = wide / (1 + np.exp(-wide))
    assert np.abs(y - right).max(where=right != 0, initial=0) <= 1e-5
    assert (np.abs(y - right) <= 6 * 2.0**-24 * np.abs(right)).all()


def test_what_is_huge_and_what_is_no_number():
    gate = [1e38, -1e38, np.inf, np.nan, -200.0]
    np.testing.assert_array_equal(custom_ops.swiglu(gate, [1.0] * 5), np.float32([1e38, 0, np.inf, np.nan, 0]))


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


def test_second_order_gradient():
    gate, up = (op_values.normal((4, 5), "float32", seed) for seed in (0, 1))

    def penalty(function):
        with tf.GradientTape() as outer:
            outer.watch([gate, up])
            with tf.GradientTape() as inner:
                inner.watch([gate, up])
                y = tf.reduce_sum(tf.sin(function(gate, up)))
            loss = sum(tf.reduce_sum(one**2) for one in inner.gradient(y, [gate, up]))
        return outer.gradient(loss, [gate, up])

    for one, right in zip(penalty(custom_ops.swiglu), penalty(plain), strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-5)


def test_wrong_arguments():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"up has shape \[3\]"):
        custom_ops.swiglu(tf.ones(4), tf.ones(3))
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError), match=r"double|float64"):
        custom_ops.swiglu(tf.ones(3, tf.float64), tf.ones(3, tf.float64))
