"""The CUDA kernels of global_norm, run in emulation: right, and the same for every order of blocks."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import pytest_checks

pytestmark = pytest.mark.slow
assert custom_ops.global_norm  # loads the library
NORM, SUM = ops.find("TfToolkit>GlobalNorm"), ops.find("TfToolkit>SumOfSquares")
# Parameters hold 168 tensors (where CUDA is too old for more, as in emulation), a chunk 16384 elements, a thread 4.
SHAPES = ((16_387,), (), (0,), (2, 3), *((1,),) * 170, (1027,))


def tensors(dtype):
    rng = np.random.default_rng(0)
    return [tf.cast(rng.standard_normal(shape), dtype) for shape in SHAPES]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_as_in_float64_for_every_order_of_blocks(dtype, random_seed):
    given = tensors(dtype)
    right = sum(np.sum(tf.cast(x, tf.float64).numpy() ** 2) for x in given)
    found = []
    for seed, blocks in ((0, 0), (random_seed, 2)):
        with emulation.settings(seed=seed, max_blocks=blocks), emulation.emulated(NORM):
            found.append((custom_ops.global_norm(given).numpy(), SUM(given).numpy()))
    assert found[0] == found[1]
    np.testing.assert_allclose(found[0], [np.sqrt(right), right], rtol=1e-6)


@pytest.mark.parametrize(("value", "expected"), [(np.nan, np.nan), (np.inf, np.inf), (1.4e19, 1.4e19), (2e19, np.inf)])
def test_what_is_not_finite_and_what_overflows(value, expected):
    given = [tf.zeros(7), tf.concat([tf.zeros(300), [value]], 0)]
    with emulation.emulated(NORM):
        np.testing.assert_allclose(custom_ops.global_norm(given), expected, rtol=1e-6)
        mixed = custom_ops.global_norm([*given, tf.zeros(2, tf.float16)])
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_nothing_has_a_norm_of_zero():
    with emulation.emulated(NORM):
        np.testing.assert_array_equal(custom_ops.global_norm([tf.zeros([0]), tf.zeros([2, 0])]), 0)


KERNEL = ["runs", "empty", "modes"]
_GIVEN = [np.float32([[1, 2, 3], [4, 5, 6]]), np.float32(7), np.float32([8])]
test_opcheck = pytest_checks(NORM, _GIVEN, checks=KERNEL, device="emulated")
