"""roi_pool is torchvision's, value for value, in every mode; NaN, boxes that are turned, endless or of no picture."""

import numpy as np
import op_values
import pytest
import tensorflow as tf
from golden_values import Golden

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table
from tftoolkit.custom_ops.roi_pool.cases import ARGUMENTS, CASES, EMPTY_CASES, call_of

assert custom_ops.roi_pool  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ARGUMENTS]
FEATURES = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)
NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", range(3))
def test_as_torchvision_does(case, mode):
    golden = Golden("roi_pool", case)
    height, width, scale = golden.options

    def run(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            size = int(height), int(width)
            y = custom_ops.roi_pool(features, golden.boxes, golden.images, size, spatial_scale=float(scale))
        return y, tape.gradient(y, features, output_gradients=tf.constant(golden.upstream))

    y, gradient = op_values.MODES[mode](run)(tf.constant(golden.features))
    np.testing.assert_array_equal(y, golden.y)
    np.testing.assert_allclose(gradient, golden.d_features, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_cases(name):
    result = table.check_cases(ops.find(f"TfToolkit>{name}"), CASES + EMPTY_CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


def test_the_first_of_equal_maxima_has_the_gradient():
    features = tf.ones([1, 3, 3, 40])
    with tf.GradientTape() as tape:
        tape.watch(features)
        y = custom_ops.roi_pool(features, [[0, 0, 2, 2]], [0], 1)
    gradient = tape.gradient(y, features).numpy()
    assert (gradient[0, 0, 0] == 1).all()
    assert gradient.sum() == 40


def test_nan_and_minus_infinity_come_through():
    features = FEATURES.copy()
    features[0, 1, 1, 0], features[0, 0, 0, 1] = NAN, -INFINITY
    y = custom_ops.roi_pool(features, [[0, 0, 3, 3], [0, 0, 0, 0]], [0, 0], 1)
    np.testing.assert_array_equal(y[:, 0, 0], [[NAN, 46, 47], [0, -INFINITY, 2]])


def test_boxes_beyond_the_picture_without_an_inside_and_endless():
    boxes = np.array(
        [[9, 9, 12, 12], [3, 3, 1, 1], [0, 0, NAN, 1], [0, 0, INFINITY, 1], [-1e38, 0, 1e38, 9]], np.float32
    )
    y = custom_ops.roi_pool(FEATURES, boxes, [0] * 5, 1)[:, 0, 0].numpy()
    np.testing.assert_array_equal(y, [[0] * 3, FEATURES[0, 3, 3], [NAN] * 3, [NAN] * 3, [45, 46, 47]])
    none = custom_ops.roi_pool(FEATURES, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (2, 3))
    assert none.shape == (0, 2, 3, 3)


def test_where_no_kernel_runs_a_box_of_no_picture_is_nan():
    """As on a GPU, where nothing waits to refuse it; and it gives no gradient."""
    boxes, indices = tf.constant([[0.0, 0, 2, 2]] * 3), tf.constant([0, 1, -1])
    forward, backward = (op.run_reference for op in OPS)
    y, places = forward(tf.constant(FEATURES), boxes, indices, output_height=1, output_width=1, spatial_scale=1.0)
    gradient = backward(tf.ones_like(y), places, tf.constant(FEATURES), indices)
    np.testing.assert_array_equal(y[:, 0, 0], [FEATURES[0, 2, 2], [NAN] * 3, [NAN] * 3])
    np.testing.assert_array_equal(tf.reduce_sum(gradient, [0, 1, 2]), [1, 1, 1])


def test_wrong_arguments():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"box_indices holds 7 \(element 1\)"):
        custom_ops.roi_pool(FEATURES, [[0, 0, 1, 1]] * 3, [0, 7, 9], 2)
    with pytest.raises(ValueError, match="output_size"):
        custom_ops.roi_pool(FEATURES, [[0, 0, 1, 1]], [0], (2, 0))
    backward = ops.find("TfToolkit>RoiPoolGrad")
    with pytest.raises(tf.errors.InvalidArgumentError, match="places holds 16"):
        backward(np.ones((1, 1, 1, 3), np.float32), np.full((1, 1, 1, 3), 16, np.int32), FEATURES, [0])


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)
