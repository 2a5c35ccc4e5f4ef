"""rms_norm with bias and residual against float64, at no more than twice the error of the plain computation."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.layer_norm.cases import CASES
from tftoolkit.custom_ops.opcheck import arguments

EPSILON = 1e-5
assert custom_ops.rms_norm  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("BiasRmsNorm", "AddRmsNorm", "AddRmsNormGrad")]
FAST = CASES[:6]


def plain(x, gamma, bias=None):
    """In the dtype of its arguments."""
    y = x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, keepdims=True) + tf.cast(EPSILON, x.dtype)) * gamma
    return y if bias is None else y + bias


def plain_with_residual(x, residual, gamma, bias):
    return plain(x + residual, gamma, bias), x + residual


def with_bias(x, gamma, bias):
    return custom_ops.rms_norm(x, gamma, EPSILON, bias=bias)


def with_both(x, residual, gamma, bias):
    return custom_ops.rms_norm(x, gamma, EPSILON, bias=bias, residual=residual)


def tensors(case):
    """x, gamma, bias and a residual that adds to x without a rounding, so that the sum is one number in all dtypes."""
    x, residual = (tf.cast(tf.round(8 * op_values.normal(case.shape, "float32", i)) / 8, case.dtype) for i in (0, 1))
    gamma, bias = (op_values.normal(case.shape[-1:], case.dtype, seed) for seed in (2, 3))
    return x, residual, gamma, bias


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    x, residual, gamma, bias = tensors(case)
    op_values.check(with_bias, plain, [x, gamma, bias], mode)
    op_values.check(with_both, plain_with_residual, [x, residual, gamma, bias], mode)


@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
@pytest.mark.slow
def test_opcheck(op):
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


def test_the_residual_alone_gives_what_two_ops_give():
    x, residual, gamma, _ = tensors(CASES[0])
    y, total = custom_ops.rms_norm(x, gamma, residual=residual)
    np.testing.assert_array_equal(total, x + residual)
    np.testing.assert_allclose(y, custom_ops.rms_norm(total, gamma), rtol=1e-6)


def test_wrong_arguments():
    x, gamma = np.ones((2, 8), np.float32), np.ones(8, np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bias has shape \[7\], but its dimension d must be 8"):
        custom_ops.rms_norm(x, gamma, bias=gamma[:7])
    with pytest.raises(tf.errors.InvalidArgumentError, match="residual has shape"):
        custom_ops.rms_norm(x, gamma, residual=x[:1])
    with pytest.raises(ValueError, match="epsilon must not be negative"):
        custom_ops.rms_norm(x, gamma, -1.0, residual=x)
