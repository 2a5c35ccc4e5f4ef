"""euclidean_distance_transform against scipy.ndimage's, exactly, and against its reference."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.euclidean_distance_transform import cases
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.euclidean_distance_transform  # loads the library
OP = ops.find("TfToolkit>EuclideanDistanceTransform")
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("background", [0.5, 0.05, 0.002])
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (33, 47), (300, 700), (600, 37)])
def test_distances_are_those_of_scipy(shape, background):
    image = (RNG.random(shape) > background).astype(np.uint8)
    image[RNG.integers(shape[0]), RNG.integers(shape[1])] = 0
    right = scipy.ndimage.distance_transform_edt(image)
    for dtype in (tf.float64, "float32", np.float16):
        found = custom_ops.euclidean_distance_transform(image * 7, dtype)
        np.testing.assert_array_equal(found, right.astype(tf.as_dtype(dtype).as_numpy_dtype))


def test_a_far_corner():
    image = np.ones((1500, 2000), np.uint8)
    image[-1, 0] = 0
    y, x = np.indices(image.shape, np.int64)
    right = np.sqrt((1499 - y) ** 2 + x**2)
    np.testing.assert_array_equal(custom_ops.euclidean_distance_transform(image, "float64"), right)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_without_background_it_is_the_largest_number(dtype):
    images = np.stack([np.ones((3, 4, 1), np.uint8), np.zeros((3, 4, 1), np.uint8)])
    found = custom_ops.euclidean_distance_transform(images, dtype)
    assert found.shape == (2, 3, 4, 1)
    np.testing.assert_array_equal(found[0], np.full((3, 4, 1), np.finfo(dtype).max))
    np.testing.assert_array_equal(found[1], np.zeros((3, 4, 1)))


def test_ranks_graphs_and_pipelines():
    images = (RNG.random((3, 8, 9, 1)) > 0.1).astype(np.uint8)
    whole = custom_ops.euclidean_distance_transform(images)
    np.testing.assert_array_equal(custom_ops.euclidean_distance_transform(images[1]), whole[1])
    np.testing.assert_array_equal(custom_ops.euclidean_distance_transform(images[1, ..., 0]), whole[1, ..., 0])
    np.testing.assert_array_equal(custom_ops.euclidean_distance_transform([[1, 1, 0]]), [[2, 1, 0]])
    data = tf.data.Dataset.from_tensor_slices(images).map(custom_ops.euclidean_distance_transform)
    for one, right in zip(data, whole, strict=True):
        np.testing.assert_array_equal(one, right)
    jitted = tf.function(custom_ops.euclidean_distance_transform, jit_compile=True)(images)
    np.testing.assert_array_equal(jitted, whole)
    assert custom_ops.euclidean_distance_transform(images[:, :0]).shape == (3, 0, 9, 1)


def test_wrong_arguments():
    image = tf.zeros([4, 4], tf.uint8)
    with pytest.raises(ValueError, match="images must have rank 2 to 4"):
        custom_ops.euclidean_distance_transform(image[0])
    with pytest.raises(ValueError, match="images must have one channel"):
        custom_ops.euclidean_distance_transform(tf.zeros([4, 4, 3], tf.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError):
        custom_ops.euclidean_distance_transform(tf.zeros([4, 4]))
    with pytest.raises((TypeError, ValueError), match="dtype"):
        custom_ops.euclidean_distance_transform(image, "int32")


@pytest.mark.slow
def test_cases():
    result = table.check_cases(OP, cases.CASES, max_elements=2000, call_of=cases.call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.slow
def test_opcheck():
    inputs, attributes = cases.arguments()
    custom_ops.opcheck(OP, *inputs, **attributes)
