"""connected_components against scipy.ndimage.label, value by value, and against its reference."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.connected_components import cases
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.connected_components  # loads the library
OP = ops.find("TfToolkit>ConnectedComponents")
RNG = np.random.default_rng(0)
DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32",
    "float64",
)  # fmt: skip


def by_scipy(images):
    """Components of each value in each image, renumbered in the order of first pixels."""
    labels, count = np.zeros(images.shape, np.int64), 0
    for image, out in zip(images, labels, strict=True):
        for value in np.unique(image[image != 0]):
            found, more = scipy.ndimage.label(image == value)
            out[found > 0] = found[found > 0] + count
            count += more
    kinds, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(np.where(kinds == 0, -1, first)))
    return order[inverse.reshape(images.shape)] + (0 if 0 in kinds else 1)


@pytest.mark.parametrize("values", [2, 3, 6])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 17, 29), (2, 1, 40), (2, 40, 1), (2, 300, 500), (1, 3, 70_000)])
def test_labels_are_those_of_scipy(shape, values):
    """The larger ones are cut into strips, the last into one for each row."""
    images = RNG.integers(0, values, shape).astype(np.uint8)
    np.testing.assert_array_equal(custom_ops.connected_components(images), by_scipy(images))


@pytest.mark.parametrize("shape", [(400, 400), (1200, 300)])
def test_long_ways(shape):
    """Spirals and combs: one region that comes back to each strip."""
    y, x = np.indices(shape)
    comb = ((x % 2 == 0) | (y == shape[0] - 1)).astype(np.int32)
    walls = (y % 4 == 0) | ((y % 8 == 2) & (x == 0)) | ((y % 8 == 6) & (x == shape[1] - 1)) | (y % 2 == 1) & False
    walls |= ((y % 8 == 1) | (y % 8 == 3)) & (x == 0) | ((y % 8 == 5) | (y % 8 == 7)) & (x == shape[1] - 1)
    for image in (comb, walls.astype(np.int32)):
        np.testing.assert_array_equal(custom_ops.connected_components(image), by_scipy(image[None])[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    images = tf.cast(RNG.integers(0, 3, (2, 9, 11)), dtype)
    np.testing.assert_array_equal(
        custom_ops.connected_components(images), by_scipy(np.asarray(tf.cast(images, tf.float32)))
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_floats(dtype):
    """-0 is 0, NaN is equal to nothing, not even beside itself; tiny numbers are not 0."""
    nan, tiny = np.nan, 6e-8
    image = tf.cast([[nan, nan, 0.0], [-0.0, tiny, tiny], [np.inf, np.inf, -np.inf]], dtype)
    np.testing.assert_array_equal(custom_ops.connected_components(image), [[1, 2, 0], [0, 3, 3], [4, 4, 5]])


def test_strings():
    image = tf.constant([["a", "a", ""], ["b", "", "a"], ["b", "b", "a"]])
    right = [[1, 1, 0], [2, 0, 3], [2, 2, 3]]
    np.testing.assert_array_equal(custom_ops.connected_components(image), right)
    np.testing.assert_array_equal(custom_ops.connected_components(image.numpy()), right)


def test_in_a_graph_and_a_pipeline():
    images = RNG.integers(0, 2, (4, 6, 7)).astype(bool)
    right = [custom_ops.connected_components(image) for image in images]
    for one, label in zip(
        tf.data.Dataset.from_tensor_slices(images).map(custom_ops.connected_components), right, strict=True
    ):
        np.testing.assert_array_equal(one, label)
    whole = tf.function(custom_ops.connected_components, jit_compile=True)(images)
    np.testing.assert_array_equal(whole, custom_ops.connected_components(images))
    assert custom_ops.connected_components(images[:0]).shape == (0, 6, 7)


def test_wrong_arguments():
    for shape in ((3,), (1, 2, 3, 4)):
        with pytest.raises(TypeError, match="images must have rank 2 or 3"):
            custom_ops.connected_components(tf.zeros(shape))
    with pytest.raises(tf.errors.InvalidArgumentError):
        custom_ops.connected_components(tf.zeros([2, 2], tf.complex64))


@pytest.mark.slow
def test_cases():
    result = table.check_cases(OP, cases.CASES, max_elements=2000, call_of=cases.call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.slow
def test_opcheck():
    inputs, attributes = cases.arguments()
    custom_ops.opcheck(OP, *inputs, **attributes)
