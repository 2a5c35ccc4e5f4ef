"""grid_sample against PyTorch's values (golden.npz), a loop over points in float64, and itself in graphs and XLA."""

import itertools
import math
from pathlib import Path

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.grid_sample.cases import ARGUMENTS, CASES, call_of
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.grid_sample  # loads the library
GOLDEN = np.load(Path(__file__).with_name("golden.npz"))
OPS = [ops.find(f"TfToolkit>{name}") for name in ARGUMENTS]
PADDINGS = ("zeros", "border", "reflection")
OPTIONS = [
    (dims, mode, padding, corners)
    for dims in (2, 3)
    for mode in ("nearest", "bilinear", "bicubic")[: 4 - dims + 1]
    for padding in PADDINGS
    for corners in (False, True)
]


def with_gradients(images, grid, dy, **options):
    images, grid = tf.convert_to_tensor(images), tf.convert_to_tensor(grid)
    with tf.GradientTape() as tape:
        tape.watch([images, grid])
        y = custom_ops.grid_sample(images, grid, **options)
    return [y, *tape.gradient(y, [images, grid], output_gradients=dy)]


@pytest.mark.parametrize(("dims", "mode", "padding", "corners"), OPTIONS)
def test_values_and_gradients_are_those_of_pytorch(dims, mode, padding, corners):
    images, grid, dy = (GOLDEN[f"{dims} {name}"] for name in ("images", "grid", "dy"))
    found = with_gradients(images, grid, dy, mode=mode, padding=padding, align_corners=corners)
    for name, one in zip(("y", "dimages", "dgrid"), found, strict=True):
        right = GOLDEN[f"{dims} {mode} {padding} {corners} {name}"]
        # Places, about 3 pixels from 0, are rounded to 2e-7; bicubic weights change by up to 3 for each pixel.
        np.testing.assert_allclose(one, right, rtol=1e-5, atol=1e-5, err_msg=name)


def point_by_point(image, coordinates, mode, padding, corners):
    """A point's value in float64, by the definition."""
    taps = []
    for g, size in zip(coordinates[::-1], image.shape[:-1], strict=True):
        at = (g + 1) / 2 * (size - 1) if corners else ((g + 1) * size - 1) / 2
        low, high = (0, size - 1) if corners else (-0.5, size - 0.5)

        def inside(at, size=size, low=low, high=high):
            if padding == "reflection" and high > low:
                at = (at - low) % (2 * (high - low)) + low
                at = 2 * high - at if at > high else at
            return at if padding == "zeros" else min(max(at, 0), size - 1)

        if mode == "bicubic":
            first = math.floor(at) - 1
            taps.append([(inside(first + k), keys(at - first - k)) for k in range(4)])
        elif mode == "bilinear":
            at = inside(at)
            first = math.floor(at)
            taps.append([(first, 1 - (at - first)), (first + 1, at - first)])
        else:
            taps.append([(round(inside(at)), 1)])
    total = np.zeros(image.shape[-1])
    for chosen in itertools.product(*taps):
        place = tuple(int(pixel) for pixel, _ in chosen)
        if all(0 <= pixel < size for pixel, size in zip(place, image.shape[:-1], strict=True)):
            total += math.prod(weight for _, weight in chosen) * image[place]
    return total


def keys(x, a=-0.75):
    x = abs(x)
    return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a


@pytest.mark.parametrize(("dims", "mode", "padding", "corners"), OPTIONS)
def test_values_are_those_of_the_definition(dims, mode, padding, corners):
    rng = np.random.default_rng(dims)
    sizes = [(1, 6, 1), (4, 3, 5)][dims - 2] if dims == 3 else (5, 1)
    for shape in (sizes, (7, 4, 3)[:dims]):
        images = rng.standard_normal((2, *shape, 2)).astype(np.float32)
        grid = rng.uniform(-3.1, 3.1, (2, *(3, 2, 4)[:dims], dims)).astype(np.float32)
        found = custom_ops.grid_sample(images, grid, mode=mode, padding=padding, align_corners=corners)
        right = [
            [point_by_point(image.astype(np.float64), point.astype(np.float64), mode, padding, corners)
             for point in points.reshape(-1, dims)]
            for image, points in zip(images, grid, strict=True)
        ]  # fmt: skip
        np.testing.assert_allclose(found, np.reshape(right, found.shape), atol=3e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_all_cases(op):
    result = table.check_cases(op, CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("dims", [2, 3])
def test_graphs_and_xla_give_the_same(dims, mode):
    arrays = [GOLDEN[f"{dims} {name}"] for name in ("images", "grid", "dy")]
    options = {"mode": "bicubic" if dims == 2 else "bilinear", "padding": "reflection"}
    run = op_values.MODES[mode](lambda *given: with_gradients(*given, **options))
    for one, right in zip(run(*map(tf.constant, arrays)), with_gradients(*arrays, **options), strict=True):
        np.testing.assert_allclose(one, right, atol=1e-6)


def test_places_that_no_pixel_has():
    """NaN is NaN, and nothing else is; what is far outside is what is just outside."""
    image = np.arange(1.0, 13).reshape(1, 3, 4, 1).astype(np.float32)
    grid = np.array([[np.nan, 0], [0, np.nan], [np.inf, 0], [-np.inf, 0], [1e30, -1e30], [3e9, 0], [-1e-45, 0]])
    grid = grid.reshape(1, 1, -1, 2).astype(np.float32)
    border = [8, 5, 4, 8]  # the last pixels of the middle row, of the first row, and of the middle row
    for mode, padding in itertools.product(("nearest", "bilinear", "bicubic"), PADDINGS):
        y, dimages, dgrid = with_gradients(image, grid, None, mode=mode, padding=padding)
        found = y.numpy().ravel()
        assert np.isnan(found[:2]).all()
        assert np.isfinite(found[4:]).all()
        assert np.isnan(dgrid[0, 0, :2]).all()
        assert np.isfinite(dimages).all()
        if padding == "reflection":
            assert np.isnan(found[2:4]).all()
            assert (found[4:6] >= 0).all()
            assert (found[4:6] <= 14).all()
        else:
            right = [0] * 4 if padding == "zeros" else border
            np.testing.assert_allclose(found[2:6], right, rtol=1e-6)
            np.testing.assert_allclose(dgrid[0, 0, 2:6, 0], 0, atol=1e-5)


def test_a_pixel_outside_takes_no_part_of_nan():
    image = np.full((1, 2, 2, 1), np.nan, np.float32)
    grid = np.array([[[[-1.6, -1.6], [-5, 0], [0, 0]]]], np.float32)
    np.testing.assert_array_equal(np.isnan(custom_ops.grid_sample(image, grid)).ravel(), [False, False, True])


def test_many_points_at_one_pixel_lose_no_digits_to_the_dtype():
    """Sums are float32: 4,096 shares of 1/256 are 16, and would stay 1 in bfloat16."""
    image = tf.zeros([1, 3, 3, 1], tf.bfloat16)
    grid, dy = tf.zeros([1, 64, 64, 2]), tf.fill([1, 64, 64, 1], tf.constant(1 / 256, tf.bfloat16))
    _, dimages, _ = with_gradients(image, grid, dy)
    np.testing.assert_array_equal(dimages[0, :, :, 0], [[0, 0, 0], [0, 16, 0], [0, 0, 0]])


def test_empty():
    image, grid = tf.ones([2, 3, 3, 2]), tf.zeros([2, 4, 5, 2])
    for images, points in [(image[:0], grid[:0]), (image, grid[:, :0]), (image[..., :0], grid)]:
        y, dimages, dgrid = with_gradients(images, points, None)
        assert y.shape == (*points.shape[:3], images.shape[-1])
        assert not np.any(dimages)
        assert not np.any(dgrid)
    for padding in PADDINGS:
        assert not np.any(custom_ops.grid_sample(image[:, :0], grid, padding=padding))


@pytest.mark.parametrize("dims", [2, 3])
def test_pixels_outside_take_no_part_of_a_nan(dims):
    """In dy, as in PyTorch: one point lies outside, with half of its pixels, and one inside."""
    backward = OPS[1 if dims == 2 else 3]
    images = tf.ones([1, *[4] * dims, 2])
    grid = tf.constant([[-3.0] * dims, [-1.0] * dims, [0.1] * dims], shape=[1, *[1] * (dims - 1), 3, dims])
    dy = tf.fill([1, *[1] * (dims - 1), 3, 2], math.nan)
    for gradients in (backward, backward.reference_function):
        dgrid = gradients(dy, images, grid, mode=1, padding=0, space=0)[1].numpy().reshape(3, dims)
        assert dgrid[0].tolist() == [0.0] * dims
        assert np.isnan(dgrid[1:]).all()


def test_wrong_arguments():
    images, grid = tf.ones([2, 4, 4, 3]), tf.zeros([2, 3, 3, 2])
    for wrong, message in [
        (lambda: custom_ops.grid_sample(images, grid[:1]), "grid has shape"),
        (lambda: custom_ops.grid_sample(images, tf.zeros([2, 3, 3, 3])), "grid has shape"),
        (lambda: custom_ops.grid_sample(images[0], grid), "images has shape"),
        (lambda: custom_ops.grid_sample(images, tf.cast(grid, tf.float16)), "expected to be a float tensor"),
        (lambda: OPS[0](images, grid, mode=3), "mode must be 0 to 2, but is 3"),
        (lambda: OPS[2](images[:, None], tf.zeros([2, 1, 3, 3, 3]), mode=2), "mode must be 0 to 1, but is 2"),
        (lambda: OPS[0](images, grid, padding=-1), "padding must be 0 to 2, but is -1"),
        (lambda: OPS[0](images, grid, space=7), "space must be 0 to 2, but is 7"),
        (lambda: custom_ops.grid_sample(tf.ones([1, 2**29 + 1, 1, 1], tf.float16), grid[:1]), "536870913 pixels"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            wrong()
    with pytest.raises(ValueError, match="mode = 'cubic': must be one of nearest, bilinear, bicubic"):
        custom_ops.grid_sample(images, grid, mode="cubic")
    with pytest.raises(ValueError, match=r"must be one of nearest, bilinear$"):
        custom_ops.grid_sample(images[None], grid[None], mode="bicubic")
    with pytest.raises(ValueError, match="padding = 'wrap'"):
        custom_ops.grid_sample(images, grid, padding="wrap")


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)
