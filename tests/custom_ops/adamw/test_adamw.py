"""adamw against float64, in every mode, at no more than twice the error of the plain TensorFlow computation."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.adamw.cases import ACROSS_TASKS, CASES, arguments, arguments_with_master, lists, options
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import CHECKS, pytest_checks

assert custom_ops.adamw  # loads the library
REFERENCE = ops.find("TfToolkit>AdamW").run_reference
WITH_MASTER = ops.find("TfToolkit>AdamWMaster")
LOW = pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16], ids=lambda dtype: dtype.name)
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


_INPUTS_WITH_MASTER, _ATTRIBUTES_WITH_MASTER = arguments_with_master()
# What the two ops don't share.
_OWN = ["runs", "empty", "invalid", "written", "reference", "nan", "gradient"]
test_checks_with_master, test_other_checks_with_master = (
    mark(pytest_checks(WITH_MASTER, *_INPUTS_WITH_MASTER, **_ATTRIBUTES_WITH_MASTER, checks=checks))
    for mark, checks in ((pytest.mark.slow, _OWN), (pytest.mark.exhaustive, [x for x in CHECKS if x not in _OWN]))
)


@MODE
@pytest.mark.parametrize("case", CASES)
def test_values(case, mode):
    tensors, attributes = lists(case.shapes, case.dtype), options(len(case.shapes))
    found = mode(lambda *tensors: custom_ops.adamw(True, RATE, T, *tensors, **attributes))(*tensors)
    naive = REFERENCE(True, RATE, T, *tensors, **attributes)
    for ours, plains, rights in zip(found, naive, _float64(tensors, attributes), strict=True):
        for one, plain, right in zip(ours, plains, rights, strict=True):
            assert (one.shape, one.dtype) == (right.shape, plain.dtype)
            if right.size:
                one, plain = (np.float64(tf.cast(x, tf.float64)) for x in (one, plain))
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


def _cast(tensors, dtype):
    return [tf.cast(tensor, dtype) for tensor in tensors]


def _bits(tensors):
    return [tf.convert_to_tensor(tensor).numpy().tobytes() for tensor in tensors]


@MODE
@LOW
@pytest.mark.parametrize("gradients", ["", "float32"], ids=["own", "float32"])
def test_low_precision_is_float32_rounded_once(mode, dtype, gradients):
    w, m, v, g = lists(ACROSS_TASKS, dtype.name, gradients)
    run = mode(lambda *each: custom_ops.adamw(True, RATE, T, *each, **options(len(w))))
    wide = run(_cast(w, tf.float32), m, v, _cast(g, tf.float32))
    found = run(w, m, v, g)
    for new, expected in zip(found, (_cast(wide.new_w, dtype), wide.new_m, wide.new_v), strict=True):
        assert _bits(new) == _bits(expected)


@MODE
@LOW
def test_a_master_is_updated_as_a_float32_weight_and_the_weight_is_its_rounding(mode, dtype):
    master, m, v, g = lists(ACROSS_TASKS)
    w, g = _cast(master, dtype), _cast(g, dtype)
    run = mode(lambda *each, **more: custom_ops.adamw(True, RATE, T, *each, **options(len(w)), **more))
    wide = run(master, m, v, _cast(g, tf.float32))
    found = run(w, m, v, g, master=master)
    for new, expected in zip(found, (_cast(wide.new_w, dtype), wide.new_m, wide.new_v, wide.new_w), strict=True):
        assert _bits(new) == _bits(expected)


@MODE
def test_a_weight_that_was_assigned_since_counts_and_not_its_master(mode):
    master = [tf.constant([1.0002, 2.0, -0.0, 1e6, np.nan], tf.float32)]
    w = [tf.constant([1.0, 5.0, 0.0, np.inf, 7.0], tf.float16)]  # 1.0002 is rounded to 1, 1e6 to infinity
    zero = [tf.zeros(5)]
    run = mode(lambda w, zero, master: custom_ops.adamw(True, 1.0, T, w, zero, zero, zero, master=master))
    found = run(w, zero, master)
    np.testing.assert_array_equal(found.new_master[0], np.float32([1.0002, 5, 0, 1e6, 7]))
    assert _bits(found.new_w) == _bits(w)


@LOW
def test_small_steps_vanish_without_a_master_and_add_up_with_one(dtype):
    w, zero, g = [tf.ones(3, dtype)], [tf.zeros(3)], [tf.ones(3, dtype)]
    alone, kept = (w, zero, zero), (w, zero, zero, [tf.ones(3)])
    for t in range(1, 101):
        alone = custom_ops.adamw(True, 1e-4, float(t), *alone, g)
        kept = custom_ops.adamw(True, 1e-4, float(t), *kept[:3], g, master=kept[3])
    np.testing.assert_array_equal(alone.new_w[0], w[0])
    np.testing.assert_allclose(kept.new_master[0], 0.99, rtol=1e-5)
    np.testing.assert_array_equal(kept.new_w[0], tf.cast(kept.new_master[0], dtype))


@MODE
def test_weights_of_several_dtypes_are_those_of_separate_calls(mode):
    """The norms' scales are float32, the second matrix has no master."""
    shapes = ((3, 5), (5,), (7,), (2, 2))
    w, m, v, g = lists(shapes)
    dtypes = [tf.bfloat16, tf.float32, tf.float16, tf.bfloat16]
    master = [w[0], None, w[2], None]
    w, g = ([tf.cast(x, dtype) for x, dtype in zip(each, dtypes, strict=True)] for each in (w, g))
    g[3] = tf.cast(g[3], tf.float32)
    attributes = options(len(shapes))

    def alone(i):
        chosen = {name: attributes[name][i : i + 1] for name in ("rate_factors", "weight_decays")}
        masters = {} if master[i] is None else {"master": [master[i]]}
        return custom_ops.adamw(True, RATE, T, *([x[i]] for x in (w, m, v, g)), **(attributes | chosen), **masters)

    found = mode(lambda *each: custom_ops.adamw(True, RATE, T, *each, **attributes, master=master))(w, m, v, g)
    assert [x is None for x in found.new_master] == [x is None for x in master]
    for i in range(len(shapes)):
        assert _bits(x[i] for x in found if x[i] is not None) == _bits(x[0] for x in alone(i))


@MODE
def test_nothing_of_low_precision_changes_where_nothing_is_applied(mode):
    w = [tf.bitcast(tf.constant([0x7FC1, 0xFF81, 0x8000, 0x0001, 0x3F80], tf.uint16), tf.bfloat16)]
    m, v, master = ([tf.bitcast(tf.constant([0x7FC12345, 0xFF800001, 0x80000000, 1, i], tf.uint32), tf.float32)]
                    for i in range(3))  # fmt: skip
    g = [tf.fill([5], tf.constant(np.nan, tf.bfloat16))]
    run = mode(lambda ok, *each: custom_ops.adamw(ok, np.nan, T, *each[:3], g, master=each[3]))
    assert [_bits(x) for x in run(tf.constant(False), w, m, v, master)] == [_bits(x) for x in (w, m, v, master)]
    alone = mode(lambda ok, *each: custom_ops.adamw(ok, np.nan, T, *each, g))
    assert [_bits(x) for x in alone(tf.constant(False), w, m, v)] == [_bits(x) for x in (w, m, v)]


def test_gradients_flow_through_weights_of_several_dtypes():
    w, m, v, g = ([tf.constant(x) for x in each] for each in lists(((3,), (2,))))
    low = tf.cast(w[0], tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch([low, w[1]])
        new = custom_ops.adamw(True, RATE, T, [low, w[1]], m, v, g, weight_decays=[1.0, 2.0])
        total = tf.reduce_sum(tf.cast(new.new_w[0], tf.float32)) + tf.reduce_sum(new.new_w[1])
    for found, expected in zip(tape.gradient(total, [low, w[1]]), (0.9, 0.8), strict=True):
        np.testing.assert_allclose(tf.cast(found, tf.float32), np.full(found.shape, expected), rtol=2**-8)


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
        ({"master": [None]}, ValueError, "all lists must have the same length"),
        ({"master": [None, np.ones((2, 2), np.float32)]}, ValueError, "a float32 weight is its own master"),
        ({"weights": [np.ones(3, np.float64)] * 2}, (TypeError, tf.errors.InvalidArgumentError), "double|float64"),
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
