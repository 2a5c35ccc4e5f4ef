"""Image stages: the same result eagerly and in any batch of a pipeline; bad input."""

import functools
import inspect
import io
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from tftoolkit.pipelines import Pipeline, SourceError, image, sources
from tftoolkit.pipelines.plan.stage import Vectorized

DIGITS = load_digits().images[:20].astype(np.uint8)[..., np.newaxis]
CHINA = load_sample_images().images[0]
PHOTOS = np.stack([CHINA[7 * i : 7 * i + 20, 40 * i : 40 * i + 24] for i in range(11)])


def digits() -> sources.Source:
    return sources.arrays({"image": DIGITS, "index": np.arange(len(DIGITS))})


def photos(*stages: Any) -> Pipeline:
    p = Pipeline(sources.arrays({"image": PHOTOS}))
    for stage in stages:
        p = p.map(stage)
    return p


def shifted(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width, _ = picture.shape
    result = np.zeros_like(picture)
    for y in range(max(down, 0), min(height, height + down)):
        for x in range(max(right, 0), min(width, width + right)):
            result[y, x] = picture[y - down, x - right]
    return result


@pytest.mark.parametrize("max_pixels", [0, 1, 9])
def test_random_shift_is_one_of_the_shifts(max_pixels: int) -> None:
    offsets = range(-max_pixels, max_pixels + 1)
    stage = image.random_shift(max_pixels)
    for number in range(6):
        example = {"image": tf.constant(DIGITS[number]), "label": 3}
        result = stage(example, tf.constant([7, number], tf.int32))
        assert int(result["label"]) == 3
        assert result["image"].dtype == tf.uint8
        candidates = [shifted(DIGITS[number], down, right) for down in offsets for right in offsets]
        assert any(np.array_equal(result["image"], candidate) for candidate in candidates)


def test_random_shift_uses_every_shift_evenly() -> None:
    marker = np.zeros([5, 5, 1], np.int32)
    marker[2, 2] = 1
    data = sources.arrays({"image": np.repeat(marker[np.newaxis], 4500, axis=0)})
    batch = next(iter(Pipeline(data).map(image.random_shift(1)).batch(4500)))
    counts = batch["image"].numpy().sum(axis=0)[..., 0]
    assert counts.sum() == 4500
    assert (counts[1:4, 1:4] > 400).all()
    assert (counts[1:4, 1:4] < 600).all()


def keyed(stage: Any) -> bool:
    function = stage.over_rows if isinstance(stage, Vectorized) else stage
    return len(inspect.signature(function).parameters) == 2


@functools.cache
def keys_of(count: int) -> list[tf.Tensor]:
    """For each of six map stages the key of each example, as a stage of the user's own gets it."""
    recorder = Pipeline(sources.arrays({"index": np.arange(count)}), seed=3)
    for number in range(6):
        recorder = recorder.map(lambda example, key, number=number: {**example, f"key {number}": key})
    (rows,) = recorder.batch(count).dataset(epochs=1)
    return [rows[f"key {number}"] for number in range(6)]


def assert_same_eagerly(source: sources.Source, examples: list[Any], stages: list[Any], sizes: list[int]) -> None:
    keys = keys_of(len(source))
    eager = []
    for index, image_in in enumerate(examples):
        example = {"image": tf.constant(image_in)}
        for number, stage in enumerate(stages):
            example = stage(example, keys[number][index]) if keyed(stage) else stage(example)
        eager.append(example["image"])
    p = Pipeline(source, seed=3).shuffle()
    for stage in stages:
        p = p.map(stage)
    for size in sizes:
        seen = []
        for batch in p.batch(size).dataset(epochs=1):
            for row, index in enumerate(batch["index"].numpy().tolist()):
                np.testing.assert_array_equal(batch["image"][row], eager[index])
                seen.append(index)
        assert sorted(seen) == list(range(len(examples)))


DIGIT_STAGES = {
    "random_shift": [image.random_shift(2)],
    "normalize": [image.normalize(16)],
    "both": [image.random_shift(1), image.normalize(16)],
}
PHOTO_STAGES = {
    "flips": [image.random_flip(0.5, 0.5), image.flip_horizontal(), image.flip_vertical()],
    "crops": [image.random_crop(18, 20), image.center_crop(15, 17)],
    "resize": [image.resize(31, 17), image.resize_shorter_side(12, "area"), image.resize(9, 9, "nearest")],
    "random_resized_crop": [image.random_resized_crop(16, 16)],
    "color_jitter": [image.color_jitter(0.4, 0.4, 0.4, 0.1)],
    "color_jitter float": [image.normalize(255), image.color_jitter(0.4, 0.4, 0.4, 0.1)],
    "rand_augment": [image.rand_augment(num_ops=3, magnitude=15)],
    "random_erasing": [image.random_erasing(0.8)],
    "standardize": [image.random_erasing(1.0, value=0), image.standardize([120, 110, 100], [58.3, 57.1, 57.4])],
    "usual": [
        image.random_resized_crop(16, 16),
        image.random_flip(),
        image.rand_augment(),
        image.normalize(255),
        image.random_erasing(),
        image.standardize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGIT_STAGES)
def test_digits_come_out_the_same_eagerly_and_in_every_batch(name: str) -> None:
    assert_same_eagerly(digits(), list(DIGITS), DIGIT_STAGES[name], [7])


@pytest.mark.parametrize("name", slow_but(PHOTO_STAGES, "usual"))
@pytest.mark.slow
def test_photographs_come_out_the_same_eagerly_and_in_every_batch(name: str) -> None:
    source = sources.arrays({"image": PHOTOS, "index": np.arange(len(PHOTOS))})
    assert_same_eagerly(source, list(PHOTOS), PHOTO_STAGES[name], [4])


FILE_STAGES = {
    "decode": [image.decode(), image.resize_shorter_side(20), image.random_crop(18, 18), image.rand_augment()],
    "decode a part": [image.random_resized_crop(16, 16, channels=1), image.random_flip()],
    "evaluation": [image.decode(), image.resize_shorter_side(20), image.center_crop(18, 18), image.normalize(255)],
}


@pytest.mark.parametrize("name", slow_but(FILE_STAGES, "decode a part"))
@pytest.mark.slow
def test_files_of_different_sizes_come_out_the_same_eagerly_and_in_every_batch(name: str) -> None:
    files = []
    for number, form in enumerate(["JPEG", "PNG", "BMP", "GIF", "JPEG", "PNG"]):
        buffer = io.BytesIO()
        Image.fromarray(CHINA[: 40 + 5 * number, : 70 - 6 * number]).save(buffer, form)
        files.append(buffer.getvalue())
    source = sources.arrays({"image": tf.constant(files), "index": np.arange(len(files))})
    assert_same_eagerly(source, files, FILE_STAGES[name], [4])


@pytest.mark.parametrize("stage", [image.mixup(10, alpha=0.5), image.cutmix(10)], ids=["mixup", "cutmix"])
def test_mixing_in_a_pipeline(stage: Any) -> None:
    labels = np.arange(len(PHOTOS)) % 10
    source = sources.arrays({"image": PHOTOS, "label": labels, "index": np.arange(len(PHOTOS))})
    p = Pipeline(source, seed=3).shuffle().batch(4).map(stage)
    keys = keys_of(len(PHOTOS))[0]
    for batch, share in zip(p.dataset(epochs=1), p.shard(1, 2).dataset(epochs=1), strict=True):
        index = batch["index"].numpy()
        rows = {"image": tf.gather(PHOTOS, index), "label": tf.gather(labels, index)}
        for row in range(len(index)):
            one = {name: value[row : row + 1] for name, value in rows.items()}
            following = {name: tf.roll(value, -1, 0)[row : row + 1] for name, value in rows.items()}
            alone = stage.over_rows(one, following, keys[int(index[row])][tf.newaxis])
            for name in ("image", "label"):
                np.testing.assert_array_equal(batch[name][row], alone[name][0])
        for name in ("image", "label", "index"):
            np.testing.assert_array_equal(batch[name][1::2], share[name])


def test_mixing_refuses_a_label_out_of_range() -> None:
    data = {"image": PHOTOS, "label": np.arange(len(PHOTOS))}
    p = Pipeline(sources.arrays(data)).batch(11).map(image.mixup(num_classes=7))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be a class number from 0 to 6"):
        next(iter(p.dataset()))


def test_a_damaged_file_is_named_and_can_be_skipped() -> None:
    buffer = io.BytesIO()
    Image.fromarray(PHOTOS[0]).save(buffer, "JPEG")
    files = [buffer.getvalue()] * 5
    files[3] = files[3][:500]
    source = sources.arrays({"image": tf.constant(files), "index": np.arange(5)})

    def pipeline(on_error: str) -> Pipeline:
        return Pipeline(source, on_error=on_error, max_skipped=0.5).map(image.decode()).map(image.resize(8, 8)).batch(5)

    with pytest.raises(SourceError, match=r"arrays, row 3: .*Invalid JPEG data"):
        next(iter(pipeline("raise")))
    assert next(iter(pipeline("skip")))["index"].numpy().tolist() == [0, 1, 2, 4]


def test_normalize() -> None:
    result = image.normalize(16)({"image": tf.constant(DIGITS[0]), "label": 1})
    assert result["image"].dtype == tf.float32
    np.testing.assert_array_equal(result["image"], DIGITS[0].astype(np.float32) / np.float32(16))
    assert float(tf.reduce_max(result["image"])) <= 1
    assert int(result["label"]) == 1


def test_stages_stand_in_states_with_their_arguments() -> None:
    p = Pipeline(digits()).map(image.random_shift(1)).map(image.normalize(16)).batch(2)
    stages = str(p.state()["stages"])
    assert "random_shift(max_pixels=1)" in stages
    assert "normalize(max_value=16)" in stages
    for stage, name in (
        (image.random_resized_crop(8, 9), "random_resized_crop(height=8, width=9, area=(0.08, 1.0), aspect=(0.75"),
        (image.rand_augment(3, 11), "rand_augment(num_ops=3, magnitude=11)"),
        (image.color_jitter(contrast=0.4), "color_jitter(contrast=0.4)"),
        (image.mixup(10), "mixup(num_classes=10, alpha=0.2)"),
    ):
        assert stage.__name__.startswith(name)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: image.random_shift(-1), ValueError, "max_pixels=-1"),
        (lambda: image.random_shift(1.5), TypeError, "max_pixels: expected an integer"),
        (lambda: image.normalize(0), ValueError, "max_value=0"),
        (lambda: image.normalize("16"), TypeError, "max_value"),
        (
            lambda: Pipeline(sources.arrays({"picture": DIGITS})).map(image.normalize(16)),
            ValueError,
            r"no feature 'image', only \['picture'\]",
        ),
        (
            lambda: Pipeline(sources.arrays({"image": DIGITS[..., 0]})).map(image.random_shift(1)),
            ValueError,
            r"\[height, width, channels\], got \(8, 8\)",
        ),
        (lambda: image.decode(4), ValueError, "channels=4: must be 3"),
        (lambda: photos(image.decode()), ValueError, "must be the contents of one file"),
        (lambda: image.resize(0, 3), ValueError, "height=0: must be at least 1"),
        (lambda: image.resize(3, 3.0), TypeError, "width: expected an integer"),
        (lambda: image.resize(3, 3, "cubic"), ValueError, "method='cubic': must be one of bilinear, nearest, area"),
        (
            lambda: photos(image.center_crop(21, 20)),
            ValueError,
            "smaller than the crop of 21 × 20 pixels: it has 20 × 24",
        ),
        (lambda: image.random_resized_crop(8, 8, area=(0, 1)), ValueError, "area="),
        (lambda: image.random_resized_crop(8, 8, area=(0.5, 1.5)), ValueError, "area=1.5"),
        (lambda: image.random_resized_crop(8, 8, aspect=(2, 1)), ValueError, "aspect="),
        (lambda: image.random_resized_crop(8, 8, aspect=0.5), TypeError, "expected \\(smallest, largest\\)"),
        (lambda: image.random_flip(1.5), ValueError, "horizontal=1.5: must be between 0 and 1"),
        (lambda: image.standardize([1, 2], [1]), ValueError, "std: expected 2 numbers"),
        (lambda: image.standardize([1], [0]), ValueError, "must be above 0"),
        (lambda: image.standardize(0.5, 0.5), TypeError, "mean: expected one number per channel"),
        (lambda: photos(image.standardize([0.5], [0.5])), ValueError, "mean has 1 numbers"),
        (lambda: image.color_jitter(), ValueError, "all amounts are 0"),
        (lambda: image.color_jitter(hue=0.6), ValueError, "hue=0.6: must be between 0 and 0.5"),
        (lambda: image.color_jitter(contrast=float("nan")), ValueError, "contrast=nan"),
        (lambda: photos(image.normalize(255), image.rand_augment()), TypeError, "must be uint8, got float32"),
        (lambda: image.rand_augment(magnitude=31), ValueError, "magnitude=31: must be between 0 and 30"),
        (lambda: image.rand_augment(0), ValueError, "num_ops=0"),
        (lambda: image.random_erasing(value="noise"), TypeError, "value: expected a number"),
        (lambda: photos(image.random_erasing(value=0.5)), ValueError, "value=0.5 is not a value of uint8"),
        (lambda: image.mixup(0), ValueError, "num_classes=0"),
        (lambda: image.cutmix(10, alpha=0), ValueError, "alpha=0: must be above 0"),
        (lambda: photos().batch(2).map(image.mixup(3)), ValueError, "no feature 'label'"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
