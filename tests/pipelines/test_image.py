"""Image stages: the same result eagerly, in a data set, and against NumPy."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tftoolkit.pipelines import Pipeline, image, sources

DIGITS = load_digits().images[:20].astype(np.uint8)[..., np.newaxis]


def digits() -> sources.Source:
    return sources.arrays({"image": DIGITS, "index": np.arange(len(DIGITS))})


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


@pytest.mark.parametrize(
    "stages",
    [
        [image.random_shift(2)],
        [image.normalize(16)],
        [image.random_shift(1), image.normalize(16)],
    ],
    ids=["random_shift", "normalize", "both"],
)
def test_eager_per_example_equals_data_set_for_every_batch_size(stages: list[Any]) -> None:
    # The keys come from a stage of the user's own at the same number, as keys depend on the stage's number.
    p = Pipeline(digits(), seed=3).shuffle()
    for stage in stages:
        p = p.map(stage)
    keys: list[dict[int, Any]] = []
    for number in range(len(stages)):
        recorder = Pipeline(digits(), seed=3)
        for _ in range(number):
            recorder = recorder.map(lambda example: example)
        recorder = recorder.map(lambda example, key: {"index": example["index"], "key": key})
        all_of_them = next(iter(recorder.batch(len(DIGITS))))
        keys.append(dict(zip(all_of_them["index"].numpy().tolist(), all_of_them["key"], strict=True)))
    for batch_size in (1, 7, 20):
        batched = p.batch(batch_size)
        for batch in batched.dataset(epochs=1):
            for row, index in enumerate(batch["index"].numpy().tolist()):
                example = {"image": tf.constant(DIGITS[index])}
                for number, stage in enumerate(stages):
                    example = stage(example, keys[number][index]) if "shift" in stage.__name__ else stage(example)
                np.testing.assert_array_equal(batch["image"][row], example["image"])


def test_normalize() -> None:
    result = image.normalize(16)({"image": tf.constant(DIGITS[0]), "label": 1})
    assert result["image"].dtype == tf.float32
    np.testing.assert_array_equal(result["image"], DIGITS[0].astype(np.float32) / np.float32(16))
    assert float(tf.reduce_max(result["image"])) <= 1
    assert int(result["label"]) == 1


def test_stages_stand_in_states_with_their_arguments() -> None:
    p = Pipeline(digits()).map(image.random_shift(1)).map(image.normalize(16)).batch(2)
    assert p.state()["maps"] == ["random_shift(max_pixels=1)", "normalize(max_value=16)"]


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
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
