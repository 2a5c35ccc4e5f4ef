"""rand_augment's kernel against the plain TensorFlow code: the same values, in every mode and for every change."""

import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from tftoolkit import custom_ops
from tftoolkit.custom_ops import ops
from tftoolkit.custom_ops.opcheck import pytest_checks
from tftoolkit.custom_ops.rand_augment.cases import EMPTY_SHAPES, MAGNITUDES, SHAPES
from tftoolkit.pipelines.image import augmenting

CHINA = load_sample_images().images[0]
assert custom_ops.rand_augment  # loads the library
OP = ops.find("TfToolkit>RandAugment")
CHANGES = range(len(augmenting.CHANGES))

test_opcheck = pytest_checks(OP, CHINA[100:105, 200:207], np.int32([6, 13]), np.int32([1, -1]), magnitude=9)


def pictures(shape: tuple[int, ...]) -> list[np.ndarray]:
    """A photograph, noise, a single colour, and a photograph that doesn't use the whole range."""
    height, width, channels = shape
    photograph = CHINA[150 : 150 + height, 300 : 300 + width, :channels]
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return [photograph, noise, np.full(shape, 77, np.uint8), photograph // 4 + 90]


def plain(magnitude: int, channels: int):
    """The plain code in a graph, where TensorFlow puts operations into another order, for pictures of any size."""
    integers = tf.TensorSpec([None], tf.int32)
    return tf.function(
        lambda image, numbers, signs: augmenting.in_tensorflow(image, numbers, signs, magnitude),
        input_signature=[tf.TensorSpec([None, None, channels], tf.uint8), integers, integers],
    )


@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_every_change_gives_the_values_of_the_plain_code(magnitude: int) -> None:
    in_graph = {channels: plain(magnitude, channels) for channels in (1, 3)}
    for shape in SHAPES + EMPTY_SHAPES:
        for picture in pictures(shape):
            for number in CHANGES:
                for sign in (-1, 1):
                    actual = custom_ops.rand_augment(picture, [number], [sign], magnitude)
                    expected = in_graph[shape[-1]](picture, tf.constant([number]), tf.constant([sign]))
                    np.testing.assert_array_equal(actual, expected, f"{augmenting.CHANGES[number]} {sign} of {shape}")


@hypothesis.given(
    st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3])),
    st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from([-1, 1])), max_size=4),
    st.sampled_from(MAGNITUDES),
    st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_changes_one_after_the_other(shape, changes, magnitude, seed) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    numbers, signs = np.array(changes, np.int32).reshape(-1, 2).T
    expected = augmenting.in_tensorflow(*map(tf.constant, (picture, numbers, signs)), magnitude)
    np.testing.assert_array_equal(custom_ops.rand_augment(picture, numbers, signs, magnitude), expected)


def test_a_large_picture() -> None:
    for number in CHANGES:
        expected = augmenting.in_tensorflow(tf.constant(CHINA), tf.constant([number]), tf.constant([-1]), 9)
        np.testing.assert_array_equal(custom_ops.rand_augment(CHINA, [number], [-1], 9), expected)


@pytest.mark.parametrize(
    ("shape", "numbers", "signs", "magnitude", "message"),
    [
        ((4, 4, 2), [0], [1], 9, "image must have 1 or 3 channels, got 2"),
        ((4, 4, 3), [14], [1], 9, "numbers must be 0 to 13, got 14"),
        ((4, 4, 3), [0, -1], [1, 1], 9, "numbers must be 0 to 13, got -1"),
        ((4, 4, 3), [0], [0], 9, "signs must be -1 or 1, got 0"),
        ((4, 4, 3), [0], [1], 31, "magnitude must be 0 to 30, got 31"),
        ((4, 4, 3), [0], [1], -1, "magnitude must be 0 to 30, got -1"),
        ((4, 4), [0], [1], 9, "image has shape .* must have 3 dimensions"),
        ((4, 4, 3), [0, 1], [1], 9, "signs"),
    ],
)
def test_wrong_arguments(shape, numbers, signs, magnitude, message) -> None:
    arguments = (np.zeros(shape, np.uint8), tf.constant(numbers), tf.constant(signs))
    for run in (custom_ops.rand_augment, tf.function(custom_ops.rand_augment, jit_compile=True)):
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
            run(*arguments, magnitude)


WITHOUT_COMPILER = """
import sys, numpy as np, tensorflow as tf
from tftoolkit.pipelines import image
picture = np.load(sys.argv[1])
stage = image.rand_augment(num_ops=3, magnitude=12)
results = [stage({"image": tf.constant(picture)}, tf.constant([0, i]))["image"] for i in range(6)]
np.save(sys.argv[2], results)
"""


def test_without_a_compiler_the_stage_gives_the_same(tmp_path) -> None:
    np.save(tmp_path / "picture.npy", CHINA[150:190, 300:350])
    errors = {}
    for name, settings in {"with": {}, "without": {"CXX": "no-such-compiler"}}.items():
        command = [sys.executable, "-c", WITHOUT_COMPILER, tmp_path / "picture.npy", tmp_path / name]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        errors[name] = done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "with.npy"), np.load(tmp_path / "without.npy"))
    warning = "RandAugment runs in TensorFlow operations, which is much slower: no C++ compiler found"
    assert warning in errors["without"]
    assert warning not in errors["with"]
