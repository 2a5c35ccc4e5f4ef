"""global_norm against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.global_norm.cases import CASES
from tftoolkit.custom_ops.opcheck import pytest_checks

assert custom_ops.global_norm  # loads the library
REFERENCE = ops.find("TfToolkit>GlobalNorm").run_reference
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
MODE = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
HUGE = 1.4e19  # its square is 2e38: two of them overflow float32


def _tensors(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [tf.constant(rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3), tf.float32) for shape in shapes]


test_all_checks = pytest.mark.slow(pytest_checks(custom_ops.global_norm, _tensors(((5, 7), (3,), ()))))


@MODE
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, mode):
    tensors = _tensors(case.shapes)

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
        assert (one.shape, one.dtype) == (plain.shape, tf.float32)
        if right.size:
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


def test_wrong_arguments():
    with pytest.raises(TypeError, match="tensors must be a list of one or more tensors"):
        custom_ops.global_norm([])
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError), match=r"double|float64"):
        custom_ops.global_norm([tf.ones(3, tf.float64)])
