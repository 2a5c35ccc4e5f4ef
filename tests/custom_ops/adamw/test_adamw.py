"""adamw against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.adamw.cases import CASES, arguments, lists, options
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import pytest_checks

assert custom_ops.adamw  # loads the library
REFERENCE = ops.find("TfToolkit>AdamW").run_reference
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}
MODE = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
RATE, T = np.float32(0.1), np.float32(3)


def _float64(tensors, attributes):
    """The formulas of the kernel's header comment, in NumPy and float64."""
    beta_1, beta_2, epsilon, factors, decays = attributes.values()
    new = []
    for *each, factor, decay in zip(*tensors, factors, decays, strict=True):
        w, m, v, g = (x.astype(np.float64) for x in each)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        direction = m / (1 - beta_1 ** float(T)) / (np.sqrt(v / (1 - beta_2 ** float(T))) + epsilon)
        new.append((w - RATE * factor * (direction + decay * w), m, v))
    return [list(each) for each in zip(*new, strict=True)]


_INPUTS, _ATTRIBUTES = arguments()
test_all_checks = pytest.mark.slow(pytest_checks(custom_ops.adamw, *_INPUTS, **_ATTRIBUTES))
test_checks_without_applying = pytest.mark.slow(
    pytest_checks(*(custom_ops.adamw, False, *_INPUTS[1:]), **_ATTRIBUTES, checks=["written", "reference", "gradient"])
)


@MODE
@pytest.mark.parametrize("case", CASES)
def test_values(case, mode):
    tensors, attributes = lists(case.shapes), options(len(case.shapes))
    found = mode(lambda *tensors: custom_ops.adamw(True, RATE, T, *tensors, **attributes))(*tensors)
    naive = REFERENCE(True, RATE, T, *tensors, **attributes)
    for ours, plains, rights in zip(found, naive, _float64(tensors, attributes), strict=True):
        for one, plain, right in zip(ours, plains, rights, strict=True):
            assert (one.shape, one.dtype) == (right.shape, tf.float32)
            if right.size:
                budget = 2 * np.abs(plain - right).max() + 2.0**-22 * np.abs(right).max()
                assert np.abs(one - right).max() <= budget


@MODE
def test_the_inputs_keep_their_values(mode):
    tensors = [[tf.constant(x) for x in each] for each in lists(((5, 7), (70_000,), ()))]
    before = [[x.numpy().copy() for x in each] for each in tensors]
    new = mode(lambda *each: custom_ops.adamw(True, RATE, T, *each))(*tensors)
    for each, old in zip(tensors, before, strict=True):
        for tensor, kept in zip(each, old, strict=True):
            np.testing.assert_array_equal(tensor, kept)
    assert not np.array_equal(new.new_w[1], before[0][1])


@MODE
def test_what_is_not_applied_keeps_every_bit(mode):
    w, m, v, g = lists(((5, 7), (70_000,), (), (0,)))
    odd = np.array([0x7FC12345, 0xFF800001, 0x80000000, 0x00000001], np.uint32).view(np.float32)  # NaNs, -0, subnormal
    for each in (w, m, v):
        each[1][:4] = odd
    g = [np.full_like(x, np.nan) for x in g]
    new = mode(lambda ok, *each: custom_ops.adamw(ok, np.nan, T, *each))(tf.constant(False), w, m, v, g)
    for each, old in zip(new, (w, m, v), strict=True):
        for tensor, kept in zip(each, old, strict=True):
            assert tensor.numpy().tobytes() == kept.tobytes()


@MODE
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999999])
@pytest.mark.parametrize("t", [1.0, 1e8])
def test_corrections_at_the_edges(mode, beta, t):
    """From moments of zero the first corrected moments are g and g^2; late corrections are 1."""
    g, zero = [np.float32([1e-3, -2.0, 30.0])], [np.zeros(3, np.float32)]
    kept = zero if t == 1 else [g[0] * g[0]]
    m = zero if t == 1 else g
    new = mode(lambda t: custom_ops.adamw(True, 1.0, t, zero, m, kept, g, beta_1=beta, beta_2=beta, epsilon=0.0))(
        tf.constant(t)
    )
    np.testing.assert_allclose(new.new_w[0], [-1, 1, -1], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta_1": 1.0}, ValueError, "beta_1 must be at least 0 and less than 1, but is 1.0"),
        ({"beta_2": float("nan")}, ValueError, "beta_2"),
        ({"rate_factors": [1.0]}, ValueError, "2 weights need as many rate factors and decays, but there are 1 and 2"),
        ({"m": [np.ones(3, np.float32)]}, ValueError, "all lists must have the same length"),
        ({"v": [np.ones(3, np.float32)] * 2}, tf.errors.InvalidArgumentError, "v has shape"),
        ({"weights": [], "m": [], "v": [], "gradients": []}, TypeError, "must be a list of one or more tensors"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    tensors = dict(zip(("weights", "m", "v", "gradients"), lists(((3,), (2, 2))), strict=True))
    with pytest.raises(error, match=message):
        custom_ops.adamw(True, RATE, T, **(tensors | change))


def test_the_op_itself_refuses_lists_of_attributes_that_do_not_fit():
    with pytest.raises(tf.errors.InvalidArgumentError, match="each of 1 weights needs a rate factor and a decay"):
        ops.find("TfToolkit>AdamW")(*(True, RATE, T, *lists(((3,),))), **(options(1) | {"rate_factors": [1.0, 1.0]}))
