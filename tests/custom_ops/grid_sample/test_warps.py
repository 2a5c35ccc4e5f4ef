"""Warps against scipy in float64: map_coordinates for the images, RBFInterpolator for the splines."""

import numpy as np
import pytest
import scipy.interpolate
import scipy.ndimage
import tensorflow as tf

from tftoolkit import custom_ops

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 8, 11, 3)).astype(np.float32)


def sampled(images, rows, columns, mode):
    """[batch, ...] each, with the channels of images behind them."""
    return np.stack(
        [
            [scipy.ndimage.map_coordinates(image[..., c].astype(np.float64), [y, x], order=1, mode=mode)
             for c in range(image.shape[-1])]
            for image, y, x in zip(images, rows, columns, strict=True)
        ]
    )  # fmt: skip


def last(array):
    return np.moveaxis(array, 1, -1)


def flowed(images, flow, mode="nearest"):
    rows, columns = np.meshgrid(np.arange(images.shape[1]), np.arange(images.shape[2]), indexing="ij")
    return last(sampled(images, rows - flow[..., 0], columns - flow[..., 1], mode))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_image_warp(dtype):
    flow = RNG.uniform(-4, 4, (2, 8, 11, 2)).astype(np.float32)
    images = tf.cast(IMAGES, dtype)
    found = custom_ops.dense_image_warp(images, flow)
    right = flowed(tf.cast(images, tf.float32).numpy(), flow.astype(np.float64))
    assert found.dtype == dtype
    np.testing.assert_allclose(tf.cast(found, tf.float32), right, atol=1e-5 if dtype == "float32" else 0.02)


def test_no_flow_changes_nothing():
    np.testing.assert_array_equal(custom_ops.dense_image_warp(IMAGES, np.zeros((2, 8, 11, 2), np.float32)), IMAGES)


def test_resampler():
    warp = RNG.uniform(-2, 12, (2, 4, 5, 2)).astype(np.float32)
    found = custom_ops.resampler(IMAGES, warp)
    wide = warp.astype(np.float64)
    right = last(sampled(IMAGES, wide[..., 1], wide[..., 0], "grid-constant"))
    np.testing.assert_allclose(found, right, atol=1e-5)
    flat = custom_ops.resampler(IMAGES, warp.reshape(2, 20, 2))
    np.testing.assert_array_equal(flat, tf.reshape(found, [2, 20, 3]))


KERNELS = {1: "linear", 2: "thin_plate_spline", 3: "cubic"}


@pytest.mark.parametrize("order", KERNELS)
@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_interpolate_spline_is_that_of_scipy(order, smooth):
    points, values, queries = (RNG.uniform(0, 9, shape) for shape in [(2, 12, 2), (2, 12, 3), (2, 30, 2)])
    # scipy's linear kernel is -r; and no distance is less than 1e-5 here, which is as much smoothing.
    smoothing = -smooth - 1e-5 if order == 1 else smooth
    right = [
        scipy.interpolate.RBFInterpolator(p, v, kernel=KERNELS[order], degree=1, smoothing=smoothing)(q)
        for p, v, q in zip(points, values, queries, strict=True)
    ]
    found = custom_ops.interpolate_spline(points, values, queries, order, smooth)
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_a_spline_goes_through_its_points(order):
    points, values = RNG.uniform(0, 3, (1, 7, 3)), RNG.standard_normal((1, 7, 1))
    np.testing.assert_allclose(custom_ops.interpolate_spline(points, values, points, order), values, atol=1e-5)


@pytest.mark.parametrize("boundary", [0, 1, 3])
def test_sparse_image_warp(boundary):
    source = RNG.uniform(1, 7, (2, 5, 2)) * [1, 1.3]
    dest = source + RNG.uniform(-1, 1, (2, 5, 2))
    image, flow = custom_ops.sparse_image_warp(IMAGES, source, dest, num_boundary_points=boundary)
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(11.0), indexing="ij")
    edge = []
    for i in range(boundary):
        y, x = 7 * i / boundary, 10 * i / boundary
        edge += [[0, x], [y, 10], [7, 10 - x], [7 - y, 0]]
    for b in range(2):
        points = np.concatenate([dest[b], np.reshape(edge, (-1, 2))])
        shifts = np.concatenate([(dest - source)[b], np.zeros((len(edge), 2))])
        spline = scipy.interpolate.RBFInterpolator(points, shifts, kernel="thin_plate_spline", degree=1)
        np.testing.assert_allclose(
            flow[b], spline(np.stack([rows, columns], -1).reshape(-1, 2)).reshape(8, 11, 2), atol=1e-6
        )
    np.testing.assert_allclose(image, flowed(IMAGES, flow.numpy()), atol=1e-5)


def test_gradients_reach_the_control_points():
    source = tf.constant(RNG.uniform(1, 7, (2, 4, 2)), tf.float32)
    dest = source + 0.3
    with tf.GradientTape() as tape:
        tape.watch([source, dest])
        image, _ = custom_ops.sparse_image_warp(IMAGES, source, dest, regularization_weight=0.01)
        loss = tf.reduce_sum(image * image)
    for gradient in tape.gradient(loss, [source, dest]):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)


FLOW = RNG.uniform(-4, 4, (2, 8, 11, 2)).astype(np.float32)
POINTS = RNG.uniform(1, 7, (2, 5, 2)).astype(np.float32)
GRAPH_CALLS = {
    "dense_image_warp": (custom_ops.dense_image_warp, IMAGES, FLOW),
    "resampler": (custom_ops.resampler, IMAGES, FLOW + 4),
    "sparse_image_warp": (
        lambda *given: custom_ops.sparse_image_warp(*given, num_boundary_points=1), IMAGES, POINTS, POINTS + 0.5
    ),
    "interpolate_spline": (
        lambda *given: custom_ops.interpolate_spline(*given, 2, 0.01), POINTS, POINTS[..., :1], FLOW[:, 0]
    ),
}  # fmt: skip


def check_program(name, jit, known):
    """Values and the gradients by all that is given."""
    call, *arrays = GRAPH_CALLS[name]

    def both(*given):
        with tf.GradientTape() as tape:
            tape.watch(given)
            found = tf.nest.flatten(call(*given))
        return [*found, *tape.gradient(found, given)]

    given = [tf.constant(one) for one in arrays]
    unknown = [tf.TensorSpec([None] * (one.shape.rank - 1) + one.shape[-1:], one.dtype) for one in given]
    run = tf.function(both, jit_compile=jit, input_signature=None if known else unknown, autograph=False)
    for one, right in zip(run(*given), both(*given), strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-4 * np.abs(right).max())


@pytest.mark.parametrize("name", GRAPH_CALLS)
def test_in_graphs_with_unknown_sizes(name):
    check_program(name, jit=False, known=False)


def test_shapes_that_do_not_go_together():
    """What is wrong is named; in a graph as far as sizes are known."""
    image, flow, points = tf.ones([1, 4, 4, 1]), tf.ones([1, 3, 4, 2]), tf.ones([1, 3, 2])
    with pytest.raises(ValueError, match=r"flow has shape \(1, 3, 4, 2\), but must have \[1, 4, 4, 2\]"):
        custom_ops.dense_image_warp(image, flow)
    with pytest.raises(ValueError, match=r"image has shape \(4, 4, 1\), but must have \[any, any, any, any\]"):
        custom_ops.dense_image_warp(image[0], flow)
    with pytest.raises(ValueError, match=r"source_control_point_locations has shape .* must have \[1, any, 2\]"):
        custom_ops.sparse_image_warp(image, points[..., :1], points)
    with pytest.raises(ValueError, match=r"dest_control_point_locations has shape .* must have \[1, 3, 2\]"):
        custom_ops.sparse_image_warp(image, points, points[:, :2])
    warp = tf.function(custom_ops.dense_image_warp, input_signature=[tf.TensorSpec([None] * 4)] * 2)
    assert warp(image, tf.zeros([1, 4, 4, 2])).shape == [1, 4, 4, 1]
    with pytest.raises(tf.errors.InvalidArgumentError):
        warp(image, flow)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPH_CALLS)
def test_under_xla(name):
    check_program(name, jit=True, known=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", GRAPH_CALLS)
@pytest.mark.parametrize("jit", [False, True])
def test_traced_with_and_without_known_sizes(name, jit):
    check_program(name, jit=jit, known=not jit)
