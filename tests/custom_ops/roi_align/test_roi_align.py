"""roi_align against torchvision's values, in every mode and dtype; boxes that are turned, endless or of no picture."""

import numpy as np
import op_values
import pytest
import tensorflow as tf
from golden_values import Golden

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table
from tftoolkit.custom_ops.roi_align import plain
from tftoolkit.custom_ops.roi_align.cases import ARGUMENTS, CASES, DTYPES, EMPTY_CASES, call_of

assert custom_ops.roi_align  # loads the library
FORWARD, BACKWARD = (ops.find(f"TfToolkit>{name}") for name in ARGUMENTS)
GOLDEN = range(5)


def both(golden: Golden, mode: str = "eager", dtype: str = "float32", index_dtype: str = "int32"):
    """y and the gradient."""
    height, width, scale, ratio, aligned = golden.options
    options = {"spatial_scale": float(scale), "sampling_ratio": int(ratio), "aligned": bool(aligned)}
    indices = tf.constant(golden.images, index_dtype)

    def run(features, upstream):
        with tf.GradientTape() as tape:
            tape.watch(features)
            y = custom_ops.roi_align(features, golden.boxes, indices, (int(height), int(width)), **options)
        return y, tape.gradient(y, features, output_gradients=upstream)

    return op_values.MODES[mode](run)(tf.cast(golden.features, dtype), tf.cast(golden.upstream, dtype))


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", GOLDEN)
def test_as_torchvision_does(case, mode):
    golden = Golden("roi_align", case)
    y, gradient = both(golden, mode, index_dtype="int64" if case % 2 else "int32")
    np.testing.assert_allclose(y, golden.y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, golden.d_features, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_round_once(dtype):
    golden = Golden("roi_align", 1)
    step = 2.0 ** (-8 if dtype == "bfloat16" else -11)
    for found, right in zip(both(golden, dtype=dtype), (golden.y, golden.d_features), strict=True):
        # Inputs are rounded as well: an output is a sum of these with weights that add up to a few.
        np.testing.assert_allclose(tf.cast(found, tf.float32), right, rtol=0, atol=12 * step)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", GOLDEN)
def test_cuda_in_emulation(case, seed):
    golden = Golden("roi_align", case)
    with emulation.emulated(FORWARD), emulation.settings(seed=seed, max_blocks=2 * seed):
        y, gradient = both(golden)
    np.testing.assert_allclose(y, golden.y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(gradient, golden.d_features, rtol=0, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_cases(name):
    op = ops.find(f"TfToolkit>{name}")
    result = table.check_cases(op, CASES + EMPTY_CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


def float64(features, boxes, indices, size, scale, ratio, aligned):
    """Sample by sample, as the paper says it."""
    _, height, width, channels = features.shape
    y = np.zeros((len(boxes), *size, channels))
    for n, box in enumerate(boxes.astype(np.float64)):
        x1, y1, x2, y2 = box * scale - (0.5 if aligned else 0)
        high, wide = (y2 - y1, x2 - x1) if aligned else (max(1, y2 - y1), max(1, x2 - x1))
        rows, columns = (
            ratio if ratio > 0 else max(0, int(np.ceil(s / k))) for s, k in ((high, size[0]), (wide, size[1]))
        )
        for i, j in np.ndindex(*size):
            for a, b in np.ndindex(rows, columns):
                at = np.array(
                    [y1 + (i + (a + 0.5) / rows) * high / size[0], x1 + (j + (b + 0.5) / columns) * wide / size[1]]
                )
                if np.any(at < -1) or at[0] > height or at[1] > width:
                    continue
                at = np.clip(at, 0, [height - 1, width - 1])
                low = np.floor(at).astype(int)
                up = np.minimum(low + 1, [height - 1, width - 1])
                part = at - low
                picture = features[indices[n]]
                y[n, i, j] += (1 - part[0]) * (
                    (1 - part[1]) * picture[low[0], low[1]] + part[1] * picture[low[0], up[1]]
                )
                y[n, i, j] += part[0] * ((1 - part[1]) * picture[up[0], low[1]] + part[1] * picture[up[0], up[1]])
            y[n, i, j] /= max(1, rows * columns)
    return y


@pytest.mark.parametrize(("scale", "ratio", "aligned"), [(1.0, -1, True), (0.4, 3, False), (0.7, 0, False)])
def test_against_the_sum_over_samples_in_float64(scale, ratio, aligned):
    features, boxes, indices = call_of("RoiAlign", CASES[0])[0]
    options = {"spatial_scale": scale, "sampling_ratio": ratio, "aligned": aligned}
    right = float64(features, boxes, indices, (3, 2), scale, ratio, aligned)
    np.testing.assert_allclose(custom_ops.roi_align(features, boxes, indices, (3, 2), **options), right, atol=2e-6)
    sizes = {"output_height": 3, "output_width": 2}
    np.testing.assert_allclose(plain.forward(features, boxes, indices, **sizes, **options), right, atol=2e-6)


FEATURES = np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)
NAN, INFINITY = float("nan"), float("inf")


def test_boxes_without_an_inside():
    turned = np.array([[3, 3, 1, 1], [2, 2, 2, 2]], np.float32)
    zeros = custom_ops.roi_align(FEATURES, turned, [0, 0], 2)
    np.testing.assert_array_equal(zeros, np.zeros((2, 2, 2, 3)))
    straight, mirrored = custom_ops.roi_align(FEATURES, [[1, 1, 3, 3], [3, 3, 1, 1]], [0, 0], 2, sampling_ratio=1)
    np.testing.assert_array_equal(mirrored, straight[::-1, ::-1])


@pytest.mark.parametrize("box", [[NAN, 0, 1, 1], [0, 0, INFINITY, 1], [0, -INFINITY, 1, 1], [0, 0, 1, 3e38]])
def test_endless_boxes(box):
    """NaN, and no gradient; a box that floats can just hold ends and is right where samples lie in the picture."""
    features = tf.constant(FEATURES)
    with tf.GradientTape() as tape:
        tape.watch(features)
        y = custom_ops.roi_align(features, [box, [0, 0, 4, 4]], [0, 0], 1)
    gradient = tape.gradient(y, features)
    np.testing.assert_array_equal(np.isnan(y[0]), max(map(abs, box)) != 3e38)
    np.testing.assert_allclose(y[1, 0, 0], FEATURES.mean((0, 1, 2)))
    np.testing.assert_allclose(tf.reduce_sum(gradient), 3, rtol=1e-6)


def test_no_boxes_and_no_pictures():
    assert custom_ops.roi_align(FEATURES, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), 2).shape == (0, 2, 2, 3)
    with tf.GradientTape() as tape:
        features = tf.constant(FEATURES)
        tape.watch(features)
        y = custom_ops.roi_align(features, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), 2)
    np.testing.assert_array_equal(tape.gradient(y, features), np.zeros_like(FEATURES))
    empty = custom_ops.roi_align(FEATURES[:, :0], [[0, 0, 1, 1]], [0], 2)
    np.testing.assert_array_equal(empty, np.zeros((1, 2, 2, 3)))


def test_where_no_kernel_runs_a_box_of_no_picture_is_nan():
    """As on a GPU, where nothing waits to refuse it; and it gives no gradient."""
    boxes, indices = tf.constant([[0.0, 0, 2, 2]] * 3), tf.constant([0, 1, -1])
    options = {"spatial_scale": 1.0, "sampling_ratio": 1, "aligned": True}
    y = plain.forward(tf.constant(FEATURES), boxes, indices, output_height=1, output_width=1, **options)
    gradient = plain.backward(tf.ones_like(y), tf.constant(FEATURES), boxes, indices, **options)
    np.testing.assert_allclose(y[:, 0, 0], [FEATURES[0, :2, :2].mean((0, 1)), [NAN] * 3, [NAN] * 3])
    np.testing.assert_allclose(tf.reduce_sum(gradient, [0, 1, 2]), [1, 1, 1])


def test_wrong_arguments():
    box = [[0, 0, 1, 1]] * 3
    for call, message in [
        (lambda: custom_ops.roi_align(FEATURES, box, [0, 1, -1], 2), r"box_indices holds 1 \(element 1\)"),
        (lambda: custom_ops.roi_align(FEATURES[0], box, [0] * 3, 2), "features has shape"),
        (lambda: custom_ops.roi_align(FEATURES, box, [0, 0], 2), "box_indices"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call()
    for options, message in [({"output_size": 0}, "output_size"), ({"output_size": 1, "sampling_ratio": 1025}, "1024")]:
        with pytest.raises(ValueError, match=message):
            custom_ops.roi_align(FEATURES, box, [0] * 3, **options)


@pytest.mark.slow
def test_a_picture_that_there_is_not_is_nan_on_a_gpu():
    features = tf.constant(FEATURES)
    with emulation.emulated(FORWARD), tf.GradientTape() as tape:
        tape.watch(features)
        y = custom_ops.roi_align(features, [[0, 0, 2, 2]] * 3, [0, 1, -1], 2)
        gradient = tape.gradient(y[:1], features)
    assert np.isnan(y[1:]).all()
    assert not np.isnan(y[0]).any()
    np.testing.assert_allclose(tf.reduce_sum(gradient), 12, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in (FORWARD, BACKWARD)])
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)


def test_dtypes_of_cases():
    assert {case.dtype for case in CASES} == set(DTYPES)
