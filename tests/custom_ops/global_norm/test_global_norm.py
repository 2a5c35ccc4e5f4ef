"""global_norm against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.global_norm.cases import ACROSS_TASKS, CASES, WITH_EMPTY
from tftoolkit.custom_ops.opcheck import pytest_checks

assert custom_ops.global_norm  # loads the library
REFERENCE = ops.find("TfToolkit>GlobalNorm").run_reference
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
MODE = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
HUGE = 1.4e19  # its square is 2e38: two of them overflow float32


def _tensors(shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    values = [np.float32(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3)) for shape in shapes]
    return [tf.cast(value, dtype) for value in values]


test_all_checks = pytest.mark.slow(pytest_checks(custom_ops.global_norm, _tensors(((5, 7), (3,), ()))))
test_all_checks_of_the_sum = pytest.mark.slow(
    pytest_checks(ops.find("TfToolkit>SumOfSquares"), _tensors(((5, 7), (3,), ())))
)


@MODE
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, mode):
    tensors = _tensors(case.shapes, case.dtype)

    def run(function, tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            norm = function(tensors)
        return norm, *tape.gradient(norm, tensors)

    found = mode(lambda tensors: run(custom_ops.global_norm, tensors))(tensors)
    naive = run(REFERENCE, tensors)
    wide = [tf.cast(tensor, tf.float64).numpy() for tensor in tensors]
    norm = np.sqrt(sum(np.sum(x * x) for x in wide))
    for one, plain, right in zip(found, naive, [norm, *(x / norm if norm else x for x in wide)], strict=True):
        assert (one.shape, one.dtype) == (plain.shape, plain.dtype)
        if right.size:
            one, plain = (tf.cast(x, tf.float64) for x in (one, plain))
            budget = 2 * np.abs(plain - right).max() + 2.0**-22 * np.abs(right).max()
            assert np.abs(one - right).max() <= budget


@MODE
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan], np.nan),
        ([np.inf, np.nan], np.nan),
        ([-np.inf], np.inf),
        ([3e38], np.inf),
        ([HUGE], HUGE),
        ([HUGE, HUGE], np.inf),
    ],
)
def test_what_is_not_finite_and_what_overflows_float32(mode, values, expected):
    """The values lie in different blocks and tensors."""
    tensors = [np.zeros(10_000, np.float32), np.zeros(200_000, np.float32)]
    for tensor, value in zip(tensors, values, strict=False):
        tensor[-1] = value
    np.testing.assert_allclose(mode(custom_ops.global_norm)([tf.constant(x) for x in tensors]), expected, rtol=1e-6)
    np.testing.assert_allclose(REFERENCE([tf.constant(x) for x in tensors]), expected, rtol=1e-6)


@MODE
@pytest.mark.parametrize("shapes", [ACROSS_TASKS, WITH_EMPTY], ids=["full", "some empty"])
def test_lists_of_several_dtypes(mode, shapes):
    """The root of a sum has half its relative error; the gradient is off by what the norm is, and by its own dtype."""
    dtypes = [tf.bfloat16, tf.float32, tf.float16, tf.bfloat16, tf.float32]
    tensors = [tf.cast(tensor, dtype) for tensor, dtype in zip(_tensors(shapes), dtypes, strict=True)]
    wide = [tf.cast(tensor, tf.float64).numpy() for tensor in tensors]
    right = np.sqrt(sum(np.sum(x * x) for x in wide))

    def run(tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            norm = custom_ops.global_norm(tensors)
        return norm, tape.gradient(norm, tensors)

    norm, gradients = mode(run)(tensors)
    assert norm.dtype == tf.float32
    np.testing.assert_allclose(norm, right, rtol=2e-7)
    for one, x, dtype in zip(gradients, wide, dtypes, strict=True):
        assert one.dtype == dtype
        epsilon = {tf.bfloat16: 2.0**-8, tf.float16: 2.0**-11, tf.float32: 2.0**-21}[dtype]
        np.testing.assert_allclose(tf.cast(one, tf.float64), x / right, rtol=1.01 * epsilon, atol=2.0**-24)


@MODE
def test_a_list_of_zeros_beside_others_has_gradients_of_zero(mode):
    def run(zeros, others):
        with tf.GradientTape() as tape:
            tape.watch([zeros, others])
            norm = custom_ops.global_norm([zeros, others])
        return tape.gradient(norm, [zeros, others])

    zeros, others = mode(run)(tf.zeros(3, tf.bfloat16), tf.constant([3.0, -4.0]))
    np.testing.assert_array_equal(tf.cast(zeros, tf.float32), np.zeros(3))
    np.testing.assert_allclose(others, [0.6, -0.8], rtol=1e-6)


@MODE
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (np.nan, 1, np.nan),
        (np.inf, np.nan, np.nan),
        (1, -np.inf, np.inf),
        (HUGE, HUGE, np.inf),
        (HUGE, 1e19, np.sqrt(HUGE**2 + 1e38)),
        (1e-20, 1, 1),
    ],
)
def test_what_is_not_finite_in_lists_of_several_dtypes(mode, low, high, expected):
    tensors = [tf.constant([0, low], tf.bfloat16), tf.constant([high], tf.float32)]
    np.testing.assert_allclose(mode(custom_ops.global_norm)(tensors), expected, rtol=2**-8)


@MODE
def test_squares_that_a_half_has_no_room_for(mode):
    tensors = [tf.fill([40_000], tf.constant(6e4, tf.float16)), tf.fill([3], tf.constant(6e-8, tf.float16))]
    right = np.sqrt(40_000) * float(tensors[0][0])
    np.testing.assert_allclose(mode(custom_ops.global_norm)(tensors), right, rtol=1e-6)
    right = np.sqrt(3) * 2.0**-24
    np.testing.assert_allclose(mode(custom_ops.global_norm)(tensors[1:]), right, rtol=1e-6)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="tensors must be a list of one or more tensors"):
        custom_ops.global_norm([])
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError), match=r"double|float64"):
        custom_ops.global_norm([tf.ones(3, tf.float64)])
