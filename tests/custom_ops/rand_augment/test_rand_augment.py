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
from tftoolkit.custom_ops import pixels
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import pytest_checks
from tftoolkit.custom_ops.rand_augment.cases import CASES, MAGNITUDES, arguments

CHINA = load_sample_images().images[0]
assert custom_ops.rand_augment  # loads the library
OP = ops.find("TfToolkit>RandAugment")
CHANGES = range(len(pixels.CHANGES))

_INPUTS, _ATTRIBUTES = arguments()
test_opcheck = pytest.mark.slow(pytest_checks(OP, *_INPUTS, **_ATTRIBUTES))


def pictures(shape: tuple[int, ...]) -> list[np.ndarray]:
    """A photograph, noise, a single colour, and a photograph that doesn't use the whole range."""
    height, width, channels = shape
    photograph = CHINA[150 : 150 + height, 300 : 300 + width, :channels]
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    return [photograph, noise, np.full(shape, 77, np.uint8), photograph // 4 + 90]


def plain(magnitude: int, channels: int):
    """The plain code in a graph, where TensorFlow puts operations into another order, for pictures of any size."""
    types = {tf.uint8: [None, None, channels], tf.int32: [None], tf.bool: [None]}
    return tf.function(
        lambda image, numbers, negative: pixels.in_tensorflow(image, numbers, negative, magnitude),
        input_signature=[tf.TensorSpec(shape, dtype) for dtype, shape in types.items()],
    )


@pytest.mark.parametrize("magnitude", [pytest.param(m, marks=[pytest.mark.slow] * (m != 9)) for m in MAGNITUDES])
@pytest.mark.slow
def test_every_change_gives_the_values_of_the_plain_code(magnitude: int) -> None:
    in_graph = {channels: plain(magnitude, channels) for channels in (1, 3)}
    for shape, _ in CASES:
        for picture in pictures(shape):
            for number in CHANGES:
                for negative in (False, True):
                    actual = custom_ops.rand_augment(picture, [number], [negative], magnitude)
                    expected = in_graph[shape[-1]](picture, tf.constant([number]), tf.constant([negative]))
                    np.testing.assert_array_equal(actual, expected, f"{pixels.CHANGES[number]} {negative} of {shape}")


@hypothesis.given(
    st.tuples(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3])),
    st.lists(st.tuples(st.sampled_from(CHANGES), st.booleans()), max_size=4),
    st.sampled_from(MAGNITUDES),
    st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_any_changes_one_after_the_other(shape, changes, magnitude, seed) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    numbers = np.array([number for number, _ in changes], np.int32)
    negative = np.array([negative for _, negative in changes], bool)
    expected = pixels.in_tensorflow(*map(tf.constant, (picture, numbers, negative)), magnitude)
    np.testing.assert_array_equal(custom_ops.rand_augment(picture, numbers, negative, magnitude), expected)


def test_a_large_picture() -> None:
    for number in CHANGES:
        expected = pixels.in_tensorflow(tf.constant(CHINA), tf.constant([number]), tf.constant([True]), 9)
        np.testing.assert_array_equal(custom_ops.rand_augment(CHINA, [number], [True], 9), expected)


@pytest.mark.parametrize(
    ("shape", "numbers", "negative", "magnitude", "message"),
    [
        ((4, 4, 2), [0], [True], 9, "image must have 1 or 3 channels, got 2"),
        ((4, 4, 3), [14], [True], 9, "numbers must be 0 to 13, got 14"),
        ((4, 4, 3), [0, -1], [True, False], 9, "numbers must be 0 to 13, got -1"),
        ((4, 4, 3), [0], [True], 31, "magnitude must be 0 to 30, got 31"),
        ((4, 4, 3), [0], [True], -1, "magnitude must be 0 to 30, got -1"),
        ((4, 4), [0], [True], 9, "image has shape .* must have 3 dimensions"),
        ((4, 4, 3), [0, 1], [True], 9, "negative"),
    ],
)
def test_wrong_arguments(shape, numbers, negative, magnitude, message) -> None:
    arguments = (np.zeros(shape, np.uint8), tf.constant(numbers), tf.constant(negative))
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


@pytest.mark.slow
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


def test_after_a_failing_trace_strategies_work() -> None:
    specs = (
        tf.TensorSpec([None, None, None], tf.uint8),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.bool),
    )
    with pytest.raises(ValueError, match="None"):
        tf.function(pixels.in_tensorflow).get_concrete_function(*specs, 9)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert tf.distribute.has_strategy()
