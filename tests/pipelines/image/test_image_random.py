"""What random image stages draw: their distributions (chi-square, fixed seeds), and what follows from the draws.

A long file: every random stage, each with the distribution that it promises.
"""

import functools
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from tftoolkit.custom_ops import pixels
from tftoolkit.pipelines import image
from tftoolkit.pipelines.image import cropping, draws, erasing, mixing
from tftoolkit.pipelines.keys import example_keys, stream_state

CHINA = load_sample_images().images[0]
PICTURE = CHINA[100:124, 200:231]
CHANGED = tf.function(pixels.changed)


def keys(count: int, seed: int = 0) -> tf.Tensor:
    return example_keys(stream_state(seed, tf.constant(0, tf.int64), 1), tf.range(count, dtype=tf.int64))


def over_keys(function: Callable[[tf.Tensor], Any], all_keys: tf.Tensor, signature: Any) -> Any:
    return tf.function(lambda k: tf.map_fn(function, k, fn_output_signature=signature))(all_keys)


def results(stage: Callable[..., Any], picture: Any, count: int, seed: int = 0) -> np.ndarray:
    """What ``stage`` makes of one picture (or a file's contents) under many keys."""
    example = {"image": tf.constant(picture)}
    result = stage(example, keys(1)[0])["image"]
    spec = tf.TensorSpec(result.shape, result.dtype)
    return over_keys(lambda key: stage(example, key)["image"], keys(count, seed), spec).numpy()


def assert_uniform(values: np.ndarray, low: float, high: float, bins: int = 20) -> None:
    assert values.min() >= low
    assert values.max() <= high
    counts = np.histogram(values, bins, (low, high))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3, counts


def assert_shares(counts: Counter[Any], shares: dict[Any, float]) -> None:
    assert set(counts) <= set(shares)
    if len(shares) == 1:
        return
    total = counts.total()
    test = scipy.stats.chisquare([counts[name] for name in shares], [share * total for share in shares.values()])
    assert test.pvalue > 1e-3, counts


def test_uniform_draws() -> None:
    values = draws.uniform(keys(20_000), 3).numpy()
    assert values.dtype == np.float64
    for column in values.T:
        assert_uniform(column, 0, 1, 100)
    grid = np.histogram2d(values[:, 0], values[:, 1], 10, [[0, 1], [0, 1]])[0]
    assert scipy.stats.chisquare(grid.ravel()).pvalue > 1e-3
    np.testing.assert_array_equal(draws.uniform(keys(20_000)[77:78], 3)[0], values[77])


def test_random_bytes() -> None:
    values = draws.random_bytes(keys(3000), 13).numpy()
    assert values.dtype == np.uint8
    assert values.shape == (3000, 13)
    for column in values.T:
        assert scipy.stats.chisquare(np.bincount(column, minlength=256)).pvalue > 1e-3
    assert abs(np.corrcoef(values[:, 0], values[:, 8])[0, 1]) < 0.06


def test_random_flip() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    names = {picture.tobytes(): "as it is", picture[:, ::-1].tobytes(): "h", picture[::-1].tobytes(): "v"}
    names[picture[::-1, ::-1].tobytes()] = "both"
    for h, v in ((0.5, 0.0), (0.3, 0.8), (1.0, 0.0)):
        counts = Counter(names[one.tobytes()] for one in results(image.random_flip(h, v), picture, 1000))
        shares = {"as it is": (1 - h) * (1 - v), "h": h * (1 - v), "v": (1 - h) * v, "both": h * v}
        assert_shares(counts, {name: share for name, share in shares.items() if share})


def test_random_crop() -> None:
    picture = np.arange(6 * 9, dtype=np.int32).reshape(6, 9, 1)
    crops = results(image.random_crop(3, 5), picture, 1500)
    for crop in crops[:20]:
        top, left = divmod(int(crop[0, 0, 0]), 9)
        np.testing.assert_array_equal(crop, picture[top : top + 3, left : left + 5])
    corners = {y * 9 + x: 1 / 20 for y in range(4) for x in range(5)}
    assert_shares(Counter(crops[:, 0, 0, 0].tolist()), corners)


# Random resized crop


def windows(height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], n: int) -> np.ndarray:
    return _windows(area, aspect)(tf.constant(height), tf.constant(width), keys(n)).numpy()


@functools.cache
def _windows(area: tuple[float, float], aspect: tuple[float, float]) -> Any:
    """Traced once for all sizes of pictures."""

    def some(height: tf.Tensor, width: tf.Tensor, all_keys: tf.Tensor) -> tf.Tensor:
        def one(key: tf.Tensor) -> tf.Tensor:
            tries = tf.reshape(draws.uniform(key[tf.newaxis], 40), [10, 4])
            return cropping.crop_window(tries, height, width, area, aspect)

        return tf.map_fn(one, all_keys, fn_output_signature=tf.TensorSpec([4], tf.int32))

    size, all_keys = tf.TensorSpec([], tf.int32), tf.TensorSpec([None, 2], tf.int32)
    return tf.function(some, input_signature=[size, size, all_keys])


def test_crop_windows_are_uniform_in_area_log_aspect_and_place() -> None:
    size = 100_000
    top, left, rows, columns = windows(size, size, (0.1, 0.5), (0.5, 2.0), 1500).T.astype(np.float64)
    assert_uniform(rows * columns / size**2, 0.0999, 0.5001)
    assert_uniform(np.log(columns / rows), np.log(0.4999), np.log(2.0001))
    assert_uniform(top / (size - rows), 0, 1.0001)
    assert_uniform(left / (size - columns), 0, 1.0001)


def test_crop_windows_lie_within_the_picture() -> None:
    for height, width in ((1, 1), (1, 30), (2, 3), (200, 7)):
        top, left, rows, columns = windows(height, width, (0.08, 1.0), (3 / 4, 4 / 3), 300).T
        assert min(top.min(), left.min()) >= 0
        assert min(rows.min(), columns.min()) >= 1
        assert (top + rows).max() <= height
        assert (left + columns).max() <= width


def test_crop_window_where_nothing_fits() -> None:
    # The whole area is never 3 : 4 … 4 : 3 in these pictures: the largest middle part is taken.
    assert windows(30, 300, (1.0, 1.0), (3 / 4, 4 / 3), 2).tolist() == [[0, 130, 30, 40]] * 2
    assert windows(300, 30, (1.0, 1.0), (3 / 4, 4 / 3), 2).tolist() == [[130, 0, 40, 30]] * 2


@pytest.mark.parametrize(
    ("form", "options", "channels"),
    [
        ("JPEG", {"subsampling": "4:2:0"}, 3),
        ("JPEG", {"subsampling": "4:2:2", "progressive": True}, 1),
        pytest.param("PNG", {}, 3, marks=pytest.mark.slow),
        pytest.param("JPEG", {"subsampling": "4:2:0"}, 1, marks=pytest.mark.slow),
        pytest.param("JPEG", {"subsampling": "4:2:2", "progressive": True}, 3, marks=pytest.mark.slow),
        pytest.param("JPEG", {"subsampling": "4:1:1"}, 3, marks=pytest.mark.slow),
        pytest.param("JPEG", {"subsampling": "4:1:1"}, 1, marks=pytest.mark.slow),
        pytest.param("PNG", {}, 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_random_resized_crop_of_a_file_equals_that_of_the_picture(
    form: str, options: dict[str, Any], channels: int
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(CHINA[:149, :201]).save(buffer, form, **options)
    stage, contents = image.random_resized_crop(40, 50, channels=channels), buffer.getvalue()
    decoded = image.decode(channels)({"image": tf.constant(contents)})["image"]
    np.testing.assert_array_equal(results(stage, contents, 20), results(stage, decoded, 20))


def test_random_resized_crop_is_the_resized_window() -> None:
    found = results(image.random_resized_crop(20, 30), CHINA[:150, :200], 10).astype(int)
    for result, window in zip(found, windows(150, 200, (0.08, 1.0), (3 / 4, 4 / 3), 10), strict=True):
        top, left, rows, columns = window
        box = (left, top, left + columns, top + rows)
        expected = Image.fromarray(CHINA).crop(box).resize((30, 20), Image.Resampling.BILINEAR)
        assert np.abs(result - np.asarray(expected)).max() <= 1


# Colour jitter


def test_color_jitter_draws_uniform_amounts() -> None:
    gray = np.full([1, 1, 1], 1000 / 4096, np.float32)
    assert_uniform(results(image.color_jitter(brightness=0.5), gray, 1000).ravel() / gray.item(), 0.4999, 1.5001)
    # above 1 the smallest factor is 0
    assert_uniform(results(image.color_jitter(brightness=1.5), gray, 1000).ravel() / gray.item(), 0.0, 2.5001)
    pair = np.array([[[0.4], [0.6]]], np.float32)
    stretched = results(image.color_jitter(contrast=0.3), pair, 1000)
    assert_uniform((stretched[:, 0, 1, 0] - stretched[:, 0, 0, 0]) / 0.2, 0.6999, 1.3001)
    red = np.array([[[0.8, 0.4, 0.4]]], np.float32)
    paler = results(image.color_jitter(saturation=0.4), red, 1000)[:, 0, 0]
    assert_uniform((paler[:, 0] - paler[:, 1]) / 0.4, 0.5999, 1.4001)
    turned = results(image.color_jitter(hue=0.1), np.array([[[0.5, 1.0, 0.5]]], np.float32), 1000)[:, 0, 0]
    assert_uniform((turned[:, 2] - turned[:, 0]) * 2 / 6, -0.1001, 0.1001)


def test_color_jitter_applies_its_steps_in_every_order() -> None:
    stage = image.color_jitter(brightness=0.6, contrast=0.5)
    picture, orders = Image.fromarray(PICTURE), Counter[str]()
    for key, result in zip(keys(60), results(stage, PICTURE, 60), strict=True):
        factors = 1 + np.array([0.6, 0.5]) * (2 * draws.uniform(key[tf.newaxis], 4)[0, 2:].numpy() - 1)

        def enhanced(picture: Image.Image, name: str, factor: float) -> Image.Image:
            return getattr(ImageEnhance, name)(picture).enhance(np.float32(factor))

        brightness_first = enhanced(enhanced(picture, "Brightness", factors[0]), "Contrast", factors[1])
        contrast_first = enhanced(enhanced(picture, "Contrast", factors[1]), "Brightness", factors[0])
        matches = [np.array_equal(result, np.asarray(one)) for one in (brightness_first, contrast_first)]
        assert any(matches)
        orders[str(matches)] += 1
    assert len(orders) >= 2
    assert min(orders["[True, False]"], orders["[False, True]"]) > 15


def test_color_jitter_leaves_gray_pictures_gray() -> None:
    gray = CHINA[:8, :9, :1]
    for one in results(image.color_jitter(saturation=0.9, hue=0.5), gray, 20):
        np.testing.assert_array_equal(one, gray)


# RandAugment


def outcomes(magnitude: int, pictures: dict[bytes, float]) -> dict[bytes, float]:
    """What one change makes of each picture, with its share."""
    after: Counter[bytes] = Counter()
    for contents, share in pictures.items():
        picture = tf.constant(np.frombuffer(contents, np.uint8).reshape(PICTURE.shape))
        for number in range(14):
            for sign in (-1.0, 1.0):
                result = CHANGED(picture, tf.constant(number), tf.constant(sign), magnitude)
                after[result.numpy().tobytes()] += share / 28
    return dict(after)


def test_rand_augment_draws_every_change_and_sign_evenly() -> None:
    expected = outcomes(12, {PICTURE.tobytes(): 1.0})
    assert len(expected) == 5 + 2 * 9
    counts = Counter(one.tobytes() for one in results(image.rand_augment(num_ops=1, magnitude=12), PICTURE, 1400))
    assert_shares(counts, expected)


def test_rand_augment_applies_two_changes_one_after_the_other() -> None:
    expected = outcomes(12, outcomes(12, {PICTURE.tobytes(): 1.0}))
    found = Counter(one.tobytes() for one in results(image.rand_augment(num_ops=2, magnitude=12), PICTURE, 300))
    assert set(found) <= set(expected)
    assert len(found) > 130


# Random erasing


def test_erased_boxes_are_uniform_in_area_aspect_and_place() -> None:
    size, count = tf.constant(30_000), 5000
    drawn = draws.uniform(keys(count), 41)
    boxes = erasing.erased_boxes(drawn, size, size, 0.7, (0.05, 0.2), (0.5, 2.0)).numpy().astype(np.float64)
    assert scipy.stats.binomtest(int((boxes[:, 2] > 0).sum()), count, 0.7).pvalue > 1e-3
    top, left, height, width = boxes[boxes[:, 2] > 0].T
    assert_uniform(height * width / 30_000**2, 0.0499, 0.2001)
    assert_uniform(height / width, 0.499, 2.001)
    assert_uniform(top / (30_000 - height), 0, 1.0001)
    assert_uniform(left / (30_000 - width), 0, 1.0001)


def test_random_erasing_fills_the_boxes() -> None:
    picture = np.ones([20, 31, 3], np.uint8)
    erased = results(image.random_erasing(0.8, value=0), picture, 200) == 0
    drawn = draws.uniform(keys(200), 41)
    boxes = erasing.erased_boxes(drawn, tf.constant(20), tf.constant(31), 0.8, (0.02, 0.4), (0.3, 1 / 0.3)).numpy()
    for one, (top, left, height, width) in zip(erased, boxes, strict=True):
        expected = np.zeros_like(one)
        expected[top : top + height, left : left + width] = True
        np.testing.assert_array_equal(one, expected)


def test_random_erasing_fills_with_noise() -> None:
    noise = results(image.random_erasing(1.0, (0.8, 0.9), (0.9, 1.1)), np.full([40, 40, 3], 7, np.uint8), 20)
    values = noise[noise != 7]
    counts = np.bincount(values, minlength=256)
    assert scipy.stats.chisquare(np.delete(counts, 7)).pvalue > 1e-3
    floats = results(image.random_erasing(1.0, (0.8, 0.9), (0.9, 1.1)), np.full([40, 40, 3], 9.0, np.float32), 20)
    assert_uniform(floats[floats != 9.0], 0, 1, 8)


def test_random_erasing_leaves_what_is_too_small() -> None:
    for shape in ([1, 1, 3], [1, 9, 1]):
        picture = np.full(shape, 9, np.uint8)
        assert (results(image.random_erasing(1.0), picture, 50) == 9).all()
    boxes = erasing.erased_boxes(tf.zeros([1, 41], tf.float64), tf.constant(9), tf.constant(9), 0.0, (0.1, 0.2), (1, 1))
    assert boxes[0, 2:].numpy().tolist() == [0, 0]


# Mixing


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_beta_draws(alpha: float) -> None:
    values = tf.function(mixing.beta_draws)(keys(3000), alpha).numpy()
    assert scipy.stats.kstest(values, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def rows(count: int, dtype: Any = np.uint8) -> dict[str, tf.Tensor]:
    images = np.stack([CHINA[i : i + 10, 2 * i : 2 * i + 13] for i in range(count)]).astype(dtype)
    return {"image": tf.constant(images), "label": tf.range(count) % 4, "index": tf.range(count)}


def partners_of(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: tf.roll(value, -1, 0) for name, value in batch.items()}


def test_mixup() -> None:
    batch = rows(50)
    mixed = image.mixup(num_classes=4, alpha=0.4).over_rows(batch, partners_of(batch), keys(50))
    share = mixing.beta_draws(keys(50), 0.4).numpy()[:, np.newaxis]
    labels = np.eye(4)[np.arange(50) % 4]
    np.testing.assert_allclose(mixed["label"], share * labels + (1 - share) * np.roll(labels, -1, 0), atol=1e-6)
    share = share[..., np.newaxis, np.newaxis]
    images = batch["image"].numpy().astype(np.float64)
    np.testing.assert_allclose(mixed["image"], share * images + (1 - share) * np.roll(images, -1, 0), atol=1e-4)
    assert mixed["image"].dtype == mixed["label"].dtype == tf.float32
    np.testing.assert_array_equal(mixed["index"], np.arange(50))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_cutmix(dtype: Any) -> None:
    batch = rows(60, dtype)
    batch["image"] = tf.zeros_like(batch["image"]) + tf.cast(batch["index"], dtype)[:, None, None, None]
    mixed = image.cutmix(num_classes=4).over_rows(batch, partners_of(batch), keys(60))
    pictures = mixed["image"].numpy()
    assert pictures.dtype == dtype
    from_partner = pictures != batch["image"].numpy()
    np.testing.assert_array_equal(pictures[from_partner], np.roll(batch["image"].numpy(), -1, 0)[from_partner])
    inside = from_partner[..., 0]
    box = inside.any(axis=2)[:, :, np.newaxis] & inside.any(axis=1)[:, np.newaxis, :]
    np.testing.assert_array_equal(from_partner, np.repeat(box[..., np.newaxis], 3, axis=-1))
    replaced = inside.mean(axis=(1, 2))[:, np.newaxis]
    assert 0.2 < replaced.mean() < 0.6
    labels = np.eye(4)[np.arange(60) % 4]
    np.testing.assert_allclose(mixed["label"], (1 - replaced) * labels + replaced * np.roll(labels, -1, 0), atol=1e-6)


def test_cut_boxes_have_the_share_and_place_drawn() -> None:
    areas, middles = np.full(3000, 0.09), draws.uniform(keys(3000), 2)
    top, left, height, width = mixing.cut_boxes(tf.constant(areas), middles, 1000, 500).numpy().T
    whole = (top > 0) & (left > 0) & (top + height < 1000) & (left + width < 500)
    assert (height[whole] == 300).all()
    assert (width[whole] == 150).all()
    assert_uniform(np.where(top > 0, top + 150, 850 - (1000 - height)), 0, 1000, 10)
    assert_uniform(left[whole], 1, 350, 10)


def test_mixing_twice_takes_the_shares_of_the_first() -> None:
    batch = rows(12)
    once = image.cutmix(num_classes=4).over_rows(batch, partners_of(batch), keys(12))
    twice = image.mixup(num_classes=4).over_rows(once, partners_of(once), keys(12, seed=1))
    np.testing.assert_allclose(tf.reduce_sum(twice["label"], axis=1), 1.0, rtol=1e-6)
    share = mixing.beta_draws(keys(12, seed=1), 0.2).numpy()[:, np.newaxis]
    expected = share * once["label"] + (1 - share) * np.roll(once["label"], -1, 0)
    np.testing.assert_allclose(twice["label"], expected, atol=1e-6)
