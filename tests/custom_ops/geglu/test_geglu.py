"""geglu, exact and by tanh, against float64, in every mode, at no more than twice the error of plain TensorFlow."""

import numpy as np
import op_values
import pytest
import tensorflow as tf
from scipy import special

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.geglu.cases import CASES
from tftoolkit.custom_ops.opcheck import arguments

assert custom_ops.geglu  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("Geglu", "GegluGrad")]
FAST = CASES[:9]
APPROXIMATE = pytest.mark.parametrize("approximate", [False, True])


@APPROXIMATE
@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode, approximate):
    gate, up = (2 * op_values.normal(case.shape, case.dtype, seed) for seed in (0, 1))
    op_values.check(
        lambda gate, up: custom_ops.geglu(gate, up, approximate=approximate),
        lambda gate, up: tf.nn.gelu(gate, approximate) * up,
        [gate, up], mode,
    )  # fmt: skip


def test_the_left_tail_keeps_its_digits():
    """1 + erf(x) has none left at -6; the op has all but a few units in the last place."""
    gate = tf.constant(np.linspace(-12, 12, 100_001), tf.float32)
    y = custom_ops.geglu(gate, tf.ones_like(gate)).numpy().astype(np.float64)
    wide = gate.numpy().astype(np.float64)
    right = wide * special.ndtr(wide)
    assert (np.abs(y - right) <= 10 * 2.0**-24 * np.abs(right)).all()


@APPROXIMATE
def test_what_is_huge_and_what_is_no_number(approximate):
    gate = tf.constant([1e38, -1e38, np.inf, np.nan, -200.0])
    with tf.GradientTape() as tape:
        tape.watch(gate)
        y = custom_ops.geglu(gate, tf.ones(5), approximate=approximate)
    np.testing.assert_array_equal(y, np.float32([1e38, 0, np.inf, np.nan, 0]))
    np.testing.assert_array_equal(tape.gradient(y, gate)[:2], [1, 0])


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    """``approximate`` is one of the attributes that it changes."""
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


def test_wrong_arguments():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"up has shape \[3\]"):
        custom_ops.geglu(tf.ones(4), tf.ones(3))
    with pytest.raises(TypeError, match="approximate must be bool, got 'tanh'"):
        custom_ops.geglu(tf.ones(3), tf.ones(3), approximate="tanh")
