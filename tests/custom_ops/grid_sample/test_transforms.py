"""Transforms against TensorFlow's own op, which TensorFlow Addons 0.23 called, and against scipy.ndimage in float64."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tftoolkit import custom_ops

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((3, 7, 9, 2)).astype(np.float32)
# Turned and shrunk; in perspective; far outside; shifted by halves, which are rounded.
TRANSFORMS = np.array(
    [
        [1.3, 0.4, -3.0, -0.5, 1.7, 1.0, 0.0, 0.0],
        [1.0, 0.1, 0.5, 0.2, 0.9, -1.0, 0.03, -0.02],
        [1.0, 0.0, -2.5, 0.0, 1.0, 1.5, 0.0, 0.0],
    ],
    np.float32,
)
FILLS = [("constant", 0.0), ("constant", 2.5), ("reflect", 0.0), ("wrap", 0.0), ("nearest", 0.0)]


def by_tensorflow(images, transforms, interpolation, fill_mode, output_shape, fill_value):
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=output_shape, interpolation=interpolation.upper(),
        fill_mode=fill_mode.upper(), fill_value=fill_value,
    )  # fmt: skip


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("fill_mode", "fill_value"), FILLS)
@pytest.mark.parametrize("shape", [None, [5, 12]])
def test_values_are_those_of_tensorflow_addons(interpolation, fill_mode, fill_value, shape):
    found = custom_ops.image_transform(IMAGES, TRANSFORMS, interpolation, fill_mode, shape, fill_value=fill_value)
    right = by_tensorflow(IMAGES, TRANSFORMS, interpolation, fill_mode, shape or [7, 9], fill_value)
    np.testing.assert_allclose(found, right, atol=5e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "uint8", "int32", "float64"])
def test_dtypes(dtype):
    images = tf.cast(IMAGES * 40 + 100, dtype)
    for interpolation in ("nearest", "bilinear"):
        found = custom_ops.image_transform(images, TRANSFORMS[1], interpolation)
        right = by_tensorflow(images, TRANSFORMS[1:2], interpolation, "constant", [7, 9], 0.0)
        assert found.dtype == images.dtype
        difference = np.abs(tf.cast(found, tf.float64) - tf.cast(right, tf.float64))
        assert difference.max() <= (0 if dtype[0] in "ui" else 200 * 2.0**-8)


def test_ranks():
    whole = custom_ops.image_transform(IMAGES, TRANSFORMS[0], "bilinear")
    np.testing.assert_array_equal(custom_ops.image_transform(IMAGES[1], TRANSFORMS[0], "BILINEAR"), whole[1])
    np.testing.assert_array_equal(
        custom_ops.image_transform(IMAGES[1, :, :, 0], TRANSFORMS[0], "bilinear"), whole[1, ..., 0]
    )


def test_infinitely_far_is_filled():
    transform = [1.0, 0, 0, 0, 1, 0, -0.5, 0]  # k is 0 in column 2
    for fill_mode, fill_value in [("constant", 0.0), ("constant", 3.0), ("nearest", 3.0)]:
        found = custom_ops.image_transform(IMAGES, transform, "bilinear", fill_mode, fill_value=fill_value)
        np.testing.assert_array_equal(found[:, :, 2], np.full((3, 7, 2), fill_value))
        right = by_tensorflow(IMAGES, [transform], "bilinear", fill_mode, [7, 9], fill_value)
        np.testing.assert_allclose(found, right, atol=2e-6)


@pytest.mark.parametrize("degrees", [0, 30, 90, -200])
def test_rotate_is_that_of_scipy(degrees):
    image = IMAGES[0, :, :, 0].astype(np.float64)
    right = scipy.ndimage.rotate(image, degrees, reshape=False, order=1, mode="grid-constant")
    found = custom_ops.rotate(image.astype(np.float32), np.deg2rad(degrees), "bilinear")
    np.testing.assert_allclose(found, right, atol=1e-5)
    each = custom_ops.rotate(IMAGES, [0.0, np.deg2rad(degrees), 1.0], "bilinear")
    one = custom_ops.rotate(IMAGES[1], np.deg2rad(degrees), "bilinear")
    np.testing.assert_allclose(each[1], one, atol=1e-6)


def test_translate_is_that_of_scipy():
    for dx, dy in [(1, 2), (-2.25, 0.5), (0, 0)]:
        right = [scipy.ndimage.shift(image, [dy, dx, 0], order=1, mode="grid-constant") for image in IMAGES]
        np.testing.assert_allclose(custom_ops.translate(IMAGES, [dx, dy], "bilinear"), right, atol=1e-5)
    each = custom_ops.translate(IMAGES, [[1.0, 0.0], [0.0, 0.0], [0.0, -2.0]])
    np.testing.assert_array_equal(each[0, :, 1:], IMAGES[0, :, :-1])
    np.testing.assert_array_equal(each[1], IMAGES[1])
    np.testing.assert_array_equal(each[2, :-2], IMAGES[2, 2:])


@pytest.mark.parametrize(("fill_mode", "fill_value"), FILLS)
def test_gradients_are_slopes(fill_mode, fill_value):
    """By images and angles: differences of the values, which are piecewise linear in the images."""
    images, angles = tf.constant(IMAGES), tf.constant([0.3, -0.7, 1.1])
    weights = tf.constant(RNG.standard_normal(IMAGES.shape), tf.float32)

    def loss(images, angles):
        turned = custom_ops.rotate(images, angles, "bilinear", fill_mode, fill_value=fill_value)
        return tf.reduce_sum(tf.cast(turned * weights, tf.float64))

    with tf.GradientTape() as tape:
        tape.watch([images, angles])
        value = loss(images, angles)
    by_images, by_angles = tape.gradient(value, [images, angles])
    step = tf.constant(RNG.standard_normal(IMAGES.shape), tf.float32)
    slope = float(loss(images + step, angles) - loss(images - step, angles)) / 2
    np.testing.assert_allclose(tf.reduce_sum(by_images * step), slope, rtol=1e-4, atol=1e-3)
    slopes = [
        float(loss(images, angles + unit) - loss(images, angles - unit)) / 2e-3 for unit in 1e-3 * np.eye(3, dtype="f")
    ]
    np.testing.assert_allclose(by_angles, slopes, rtol=0.02, atol=0.3)  # kinks in a step of 0.002


GRAPH_CALLS = {
    "rotate": lambda x: custom_ops.rotate(x, 0.4, "bilinear", "reflect"),
    "translate": lambda x: custom_ops.translate(x, [[1.5, 0.0], [0.25, -1.0], [0.0, 2.0]], "bilinear", "nearest"),
    "wrap": lambda x: custom_ops.image_transform(x, TRANSFORMS, "bilinear", "wrap"),
    "fill": lambda x: custom_ops.image_transform(x, TRANSFORMS, "bilinear", fill_value=2.5),
    "smaller": lambda x: custom_ops.image_transform(x, TRANSFORMS, "nearest", output_shape=[5, 4]),
    "larger": lambda x: custom_ops.image_transform(x, TRANSFORMS[0], "bilinear", "wrap", tf.constant([11, 12])),
}
UNKNOWN = [tf.TensorSpec([None] * 4)]


@pytest.mark.parametrize("call", GRAPH_CALLS)
def test_in_graphs_with_unknown_sizes(call):
    """One program for images of any size."""
    run = tf.function(GRAPH_CALLS[call], input_signature=UNKNOWN, autograph=False)
    for images in (IMAGES, IMAGES[:, :6, 2:]):
        np.testing.assert_allclose(run(images), GRAPH_CALLS[call](images), atol=1e-5)


@pytest.mark.parametrize(
    "call", [pytest.param(call, marks=[pytest.mark.slow] * (call != "wrap")) for call in GRAPH_CALLS]
)
def test_under_xla(call):
    run = tf.function(GRAPH_CALLS[call], jit_compile=True, autograph=False)
    np.testing.assert_allclose(run(tf.constant(IMAGES)), GRAPH_CALLS[call](IMAGES), atol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [None, [5, 12]])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("fill_mode", "fill_value"), FILLS)
def test_all_ways_in_graphs_and_xla(fill_mode, fill_value, interpolation, shape, jit):
    """Values, and the gradient by the images."""

    def both(images, transforms):
        with tf.GradientTape() as tape:
            tape.watch(images)
            options = {"output_shape": shape, "fill_value": fill_value}
            found = custom_ops.image_transform(images, transforms, interpolation, fill_mode, **options)
        return found, tape.gradient(found, images, output_gradients=tf.cos(found))

    given = tf.constant(IMAGES), tf.constant(TRANSFORMS)
    unknown = None if jit else [*UNKNOWN, tf.TensorSpec([None, 8])]
    run = tf.function(both, jit_compile=jit, input_signature=unknown, autograph=False)
    for one, right in zip(run(*given), both(*given), strict=True):
        np.testing.assert_allclose(one, right, atol=2e-5)


def test_wrong_arguments():
    for wrong, error, message in [
        (lambda: custom_ops.image_transform(IMAGES[None], TRANSFORMS), TypeError, "rank of 2 to 4"),
        (lambda: custom_ops.image_transform(IMAGES, TRANSFORMS[None]), TypeError, "transforms must have rank 1 or 2"),
        (lambda: custom_ops.rotate(IMAGES, [[1.0]]), TypeError, "angles must have rank 0 or 1"),
        (lambda: custom_ops.translate(IMAGES, 1.0), TypeError, "translations must have rank 1 or 2"),
        (
            lambda: custom_ops.rotate(IMAGES, 1.0, "cubic"),
            ValueError,
            "interpolation = 'cubic': must be one of nearest",
        ),
        (lambda: custom_ops.rotate(IMAGES, 1.0, fill_mode="edge"), ValueError, "fill_mode = 'edge': must be one of"),
    ]:
        with pytest.raises(error, match=message):
            wrong()
