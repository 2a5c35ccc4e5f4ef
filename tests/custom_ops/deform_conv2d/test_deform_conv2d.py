"""deform_conv2d against torchvision's values and TensorFlow's convolution, in every mode; bad shapes and offsets."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import op_values
import pytest
import tensorflow as tf
from golden_values import Golden

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.deform_conv2d import plain
from tftoolkit.custom_ops.deform_conv2d.cases import ARGUMENTS, CASES, EMPTY_CASES, call_of
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.deform_conv2d  # loads the library
FORWARD, BACKWARD = (ops.find(f"TfToolkit>{name}") for name in ARGUMENTS)
GOLDEN = range(4)
NAMES = ("x", "offset", "weight", "bias", "mask")
NAN, INFINITY = float("nan"), float("inf")


def check_golden(case: int, mode: str = "eager") -> None:
    golden = Golden("deform_conv2d", case)
    steps = list(map(int, golden.options))
    given = {name: tf.constant(getattr(golden, name)) for name in NAMES if name in golden}

    def run(inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = custom_ops.deform_conv2d(
                inputs["x"], inputs["offset"], inputs["weight"], inputs.get("bias"), mask=inputs.get("mask"),
                stride=steps[:2], padding=steps[2:4], dilation=steps[4:],
            )  # fmt: skip
        return y, tape.gradient(y, inputs, output_gradients=upstream)

    y, gradients = op_values.MODES[mode](run)(given, tf.constant(golden.upstream))
    np.testing.assert_allclose(y, golden.y, rtol=1e-6, atol=1e-5)
    for name, found in gradients.items():
        np.testing.assert_allclose(found, getattr(golden, f"d_{name}"), rtol=1e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", GOLDEN)
def test_as_torchvision_does(case, mode):
    check_golden(case, mode)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", GOLDEN)
def test_cuda_in_emulation(case, seed):
    with emulation.emulated(FORWARD), emulation.settings(seed=seed, max_blocks=2 * seed):
        check_golden(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_cases(name):
    result = table.check_cases(ops.find(f"TfToolkit>{name}"), CASES + EMPTY_CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 2), (1, 2, 1)])
def test_without_offsets_it_is_a_convolution(stride, dilation, groups):
    x, weight = op_values.normal((2, 9, 8, 6), "float32"), op_values.normal((3, 3, 6 // groups, 4), "float32", 1)
    right = tf.nn.conv2d(x, weight, stride, "VALID", dilations=dilation)
    offset = tf.zeros([*right.shape[:3], 18])
    found = custom_ops.deform_conv2d(x, offset, weight, stride=stride, dilation=dilation)
    np.testing.assert_allclose(found, right, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_other_instruction_sets(isa):
    """In a process of its own: the choice is made once."""
    here = Path(__file__)
    environment = os.environ | {"TFTOOLKIT_ISA": isa, "PYTHONPATH": os.pathsep.join([*sys.path, str(here.parent)])}
    program = f"import {here.stem} as tests\nfor case in tests.GOLDEN: tests.check_golden(case)"
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_second_derivatives_are_the_plain_ones():
    inputs, attributes = ARGUMENTS["DeformConv2d"]()
    tensors = list(map(tf.constant, inputs))

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(tensors)
            with tf.GradientTape() as inner:
                inner.watch(tensors)
                y = tf.reduce_sum(tf.sin(function(*tensors, **attributes)))
            first = inner.gradient(y, tensors)
            loss = sum(tf.reduce_sum(one**2) for one in first)
        return outer.gradient(loss, tensors)

    for found, right in zip(second(FORWARD), second(plain.forward), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-3 * np.abs(right).max())


@pytest.mark.slow
def test_third_derivatives_in_a_graph():
    """opcheck takes a derivative that is refused for one that is meant to be."""
    (x, *others), attributes = ARGUMENTS["DeformConv2d"]()

    def derivative(function, x, order):
        if order == 0:
            return function(x, *others, **attributes)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.sin(derivative(function, x, order - 1)))
        return tape.gradient(value, x)

    found, right = (
        tf.function(derivative, autograph=False)(one, tf.constant(x), 3) for one in (FORWARD, plain.forward)
    )
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-4 * np.abs(right).max())


X, WEIGHT = np.ones((1, 5, 5, 4), np.float32), np.ones((3, 3, 4, 2), np.float32)
OFFSET = np.zeros((1, 3, 3, 18), np.float32)


def test_offsets_that_lead_nowhere():
    offset = OFFSET.copy()
    offset[0, 0, 0, :2] = NAN, 0
    offset[0, 1, 1, :2] = INFINITY, 3e38
    tensors = [tf.constant(one) for one in (X, offset, WEIGHT)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y = custom_ops.deform_conv2d(*tensors)
    assert np.isnan(y[0, 0, 0]).all()
    np.testing.assert_array_equal(y[0, 1, 1], [32, 32])  # one point of nine is 0
    np.testing.assert_array_equal(y[0, 2], np.full((3, 2), 36))
    dx, doffset, _ = tape.gradient(y, tensors)
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(
        np.isnan(doffset), np.isnan(offset) | np.isin(np.arange(18), [1]) & np.isnan(offset[..., :1])
    )


def test_nan_in_the_mask():
    """Of a point inside of the picture and of one outside: the plain computation says so, too."""
    offset, mask = OFFSET.copy(), np.ones((1, 3, 3, 9), np.float32)
    offset[0, 0, 0, :2], mask[0, 0, 0, 0], mask[0, 2, 1, 4] = 100, NAN, NAN
    given = np.ones((1, 3, 3, 2), np.float32), X, offset, WEIGHT, mask
    steps = {f"{name}_{axis}": int(name != "padding") for name in ("stride", "padding", "dilation") for axis in "yx"}
    found = BACKWARD(*given, **steps, masked=True, has_dmask=True)
    for one, right in zip(found, plain.gradients(*map(tf.constant, given), **steps), strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-6)
    np.testing.assert_array_equal(np.isnan(found.dweight).reshape(9, -1).all(1), np.isin(np.arange(9), [0, 4]))


def test_wrong_shapes():
    call = custom_ops.deform_conv2d
    for wrong, message in [
        (lambda: call(X, OFFSET[..., :17], WEIGHT), "last dimension of offset is 17"),
        (lambda: call(X, OFFSET[:, :2], WEIGHT), "offset says that y has the height 2, but it has 3"),
        (lambda: call(X, OFFSET, WEIGHT, padding=(0, 1)), "offset says that y has the width 3, but it has 5"),
        (lambda: call(X, OFFSET, WEIGHT[:, :, :3]), "x has 4 channels, weight takes 3"),
        (lambda: call(X, OFFSET, WEIGHT[:, :, :1]), "must be multiples of the number of groups"),
        (lambda: call(X, OFFSET, WEIGHT[:0]), "weight must have a height"),
        (lambda: call(X, OFFSET, WEIGHT, mask=OFFSET), "last dimension of mask is 18"),
        (lambda: call(X, OFFSET, WEIGHT, np.ones(3, np.float32)), "bias"),
        (lambda: call(X, OFFSET, WEIGHT, stride=2**40), "stride and dilation of the height"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()
    for options, message in [
        ({"stride": 0}, "stride"),
        ({"padding": (0, -1)}, "padding"),
        ({"dilation": 0}, "dilation"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(X, OFFSET, WEIGHT, **options)


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in (FORWARD, BACKWARD)])
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)
