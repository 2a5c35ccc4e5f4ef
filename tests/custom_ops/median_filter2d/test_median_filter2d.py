"""median_filter2d against scipy.ndimage's and NumPy's medians, and against its reference."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.median_filter2d import cases
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.median_filter2d  # loads the library
OP = ops.find("TfToolkit>MedianFilter2d")
RNG = np.random.default_rng(0)
WHOLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
DTYPES = (*WHOLE, "float16", "bfloat16", "float32", "float64")
SCIPY_MODES = {"REFLECT": "mirror", "SYMMETRIC": "reflect", "CONSTANT": "constant"}


def numbers(shape, dtype):
    values = np.round(RNG.standard_normal(shape) * 30)
    return tf.cast(np.abs(values) if dtype[0] == "u" else values, dtype)


def by_numpy(image, rows, columns, padding, constant):
    """Of windows of any size, in float64; the mean of two, rounded toward 0 where whole."""
    before = (rows - 1) // 2, (columns - 1) // 2
    frame = [(before[0], rows - 1 - before[0]), (before[1], columns - 1 - before[1])]
    options = {"constant_values": constant} if padding == "CONSTANT" else {}
    padded = np.pad(image.astype(np.float64), frame, padding.lower(), **options)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns))
    found = np.median(windows, axis=(-2, -1))
    return np.trunc(found) if image.dtype.kind in "iu" else found


@pytest.mark.parametrize("padding", SCIPY_MODES)
@pytest.mark.parametrize("size", [(3, 3), (5, 5), (1, 7), (9, 3), (17, 15)])
def test_odd_windows_are_those_of_scipy(size, padding):
    image = RNG.standard_normal((40, 70)).astype(np.float32)
    right = scipy.ndimage.median_filter(image, size, mode=SCIPY_MODES[padding], cval=0.5)
    np.testing.assert_array_equal(custom_ops.median_filter2d(image, size, padding, 0.5), right)


@pytest.mark.parametrize("size", [(2, 2), (3, 4), (4, 1), (6, 3), (16, 16), (1, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_even_windows(dtype, size):
    image = numbers((20, 19), dtype)
    wide = np.asarray(tf.cast(image, tf.float64 if image.dtype.is_floating else tf.int64))
    for padding in SCIPY_MODES:
        found = custom_ops.median_filter2d(image, size, padding, 3)
        assert found.dtype == image.dtype
        right = tf.cast(by_numpy(wide, *size, padding, 3), image.dtype)
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int64", "uint64"])
def test_sums_do_not_overflow(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for a, b in [(high, high), (low, low), (high - 2, high), (low, high), (low, low + 3)]:
        found = custom_ops.median_filter2d(np.array([[a, b]], dtype), (1, 2), "CONSTANT")
        total = int(a) + int(b)
        assert int(found[0, 0]) == abs(total) // 2 * (1 if total > 0 else -1)


def test_images_smaller_than_the_window():
    """Reflected as often as it takes, as np.pad does."""
    image = np.array([[1.0, 5.0, 2.0]], np.float32)
    for padding in ("REFLECT", "SYMMETRIC"):
        np.testing.assert_array_equal(
            custom_ops.median_filter2d(image, (9, 11), padding), by_numpy(image, 9, 11, padding, 0)
        )


@pytest.mark.parametrize("size", [(3, 3), (16, 15)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_reaches_its_windows_and_no_further(dtype, size):
    image = np.zeros((40, 41), dtype)
    image[20, 20] = np.nan
    right = scipy.ndimage.maximum_filter(
        np.isnan(image), size, origin=[0 if n % 2 else -1 for n in size], mode="constant"
    )
    np.testing.assert_array_equal(np.isnan(custom_ops.median_filter2d(image, size)), right)


def test_ranks_graphs_and_pipelines():
    images = RNG.integers(0, 255, (3, 8, 9, 3)).astype(np.uint8)
    whole = custom_ops.median_filter2d(images)
    np.testing.assert_array_equal(custom_ops.median_filter2d(images[1]), whole[1])
    np.testing.assert_array_equal(custom_ops.median_filter2d(images[1, ..., 2], 3), whole[1, ..., 2])
    for one, right in zip(
        tf.data.Dataset.from_tensor_slices(images).map(custom_ops.median_filter2d), whole, strict=True
    ):
        np.testing.assert_array_equal(one, right)
    np.testing.assert_array_equal(tf.function(custom_ops.median_filter2d, jit_compile=True)(images), whole)
    assert custom_ops.median_filter2d(images[:, :0]).shape == (3, 0, 9, 3)


def test_the_gradient_goes_to_the_median():
    image = tf.constant([[1.0, 5.0, 2.0, 4.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(image)
        y = custom_ops.median_filter2d(image, (1, 3), "CONSTANT")  # 1, 2, 4, 3, 3
    gradient = tape.gradient(y, image, output_gradients=tf.constant([[1.0, 10, 100, 1000, 10000]]))
    np.testing.assert_array_equal(gradient, [[1, 0, 10, 100, 11000]])


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_the_largest_numbers_are_compared_as_unsigned_ones(dtype):
    """By the kernel, both its ways, and by the reference."""
    most = np.iinfo(dtype).max
    image = np.full((17, 18), most, dtype) - RNG.integers(0, 7, (17, 18)).astype(dtype) * np.array(most // 7, dtype)
    for size in (3, (2, 2), (16, 15)):
        rows, columns = (size, size) if isinstance(size, int) else size
        windows = np.lib.stride_tricks.sliding_window_view(image, (rows, columns))
        ordered = np.sort(windows.reshape(*windows.shape[:2], -1), axis=-1)
        low, high = ordered[..., (rows * columns - 1) // 2], ordered[..., rows * columns // 2]
        right = low // 2 + high // 2 + (low % 2 + high % 2) // 2
        inside = tuple(
            slice((n - 1) // 2, length - n // 2) for n, length in zip((rows, columns), image.shape, strict=True)
        )
        np.testing.assert_array_equal(custom_ops.median_filter2d(image, size)[inside], right)
        plain = OP.run_reference(image[None, ..., None], rows=rows, columns=columns)[0, ..., 0]
        np.testing.assert_array_equal(plain[inside], right)


def test_wrong_arguments():
    image = tf.zeros([4, 4], tf.uint8)
    for wrong, message in [
        (lambda: custom_ops.median_filter2d(image, (0, 3)), "filter_shape must be positive"),
        (lambda: custom_ops.median_filter2d(image, padding="SAME"), "padding = 'SAME': must be one of REFLECT"),
        (lambda: custom_ops.median_filter2d(image[0]), "image must have rank 2 to 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    for wrong, message in [
        (
            lambda: custom_ops.median_filter2d(image, padding="CONSTANT", constant_values=300),
            "constant must be a number",
        ),
        (
            lambda: custom_ops.median_filter2d(image, padding="CONSTANT", constant_values=float("nan")),
            "constant must be",
        ),
        (lambda: OP(image[None, ..., None], padding=3), "padding must be 0 to 2, but is 3"),
        (lambda: OP(image[None, ..., None], rows=-1), "rows must be positive"),
        (lambda: custom_ops.median_filter2d(image, (70_000, 70_000)), "rows times columns at most 131072"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()


@pytest.mark.slow
def test_cases():
    chosen = [case for case in cases.CASES if case.rows * case.columns < 50]
    result = table.check_cases(OP, chosen, call_of=cases.call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.slow
def test_opcheck():
    inputs, attributes = cases.arguments()
    custom_ops.opcheck(OP, *inputs, **attributes)
