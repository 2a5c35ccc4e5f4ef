"""adamw_rows and sum_rows against float64, in every mode; rows that aren't used, bad indices, variables in place."""

import re

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.adamw_rows.cases import ARGUMENTS, CASES, EMPTY_CASES, OPTIONS, arrays
from tftoolkit.custom_ops.engine import ops, variables

assert custom_ops.adamw_rows  # loads the library
REFERENCES = {name: ops.find(f"TfToolkit>{name}").run_reference for name in ARGUMENTS}
MODE = pytest.mark.parametrize("mode", op_values.MODES.values(), ids=op_values.MODES)
RATE, T = np.float32(0.1), np.float32(3)
ODD = np.array([0x7FC12345, 0xFF800001, 0x80000000, 0x00000001], np.uint32).view(np.float32)  # NaNs, -0, subnormal


def by_hand(w, m, v, indices, gradients):
    """The formulas of the kernel's header comment, in float64."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        new = w, m, v = [x.astype(np.float64) for x in (w, m, v)]
    g = np.zeros_like(w)
    np.add.at(g, indices, gradients)
    used = np.unique(indices)
    m[used] = OPTIONS["beta_1"] * m[used] + (1 - OPTIONS["beta_1"]) * g[used]
    v[used] = OPTIONS["beta_2"] * v[used] + (1 - OPTIONS["beta_2"]) * g[used] ** 2
    corrected = [x[used] / (1 - OPTIONS[beta] ** float(T)) for x, beta in ((m, "beta_1"), (v, "beta_2"))]
    direction = corrected[0] / (np.sqrt(corrected[1]) + OPTIONS["epsilon"])
    w[used] -= RATE * (direction + OPTIONS["weight_decay"] * w[used])
    return new


@MODE
@pytest.mark.parametrize("case", [*CASES, *EMPTY_CASES])
def test_used_rows_move_and_all_others_keep_every_bit(case, mode):
    tensors = arrays(case)
    unused = np.delete(np.arange(len(tensors[0])), tensors[3])
    for row in unused[:1]:
        tensors[0][row].reshape(-1)[:4] = ODD[: tensors[0][row].size]
    right = by_hand(*tensors)
    found = mode(lambda *each: custom_ops.adamw_rows(True, RATE, T, *each, **OPTIONS))(*tensors)
    naive = REFERENCES["AdamWRows"](*map(tf.constant, tensors), True, RATE, T, **OPTIONS)
    used = np.unique(tensors[3])
    for one, plain, exact, old in zip(found, naive, right, tensors, strict=False):
        assert one.dtype == tf.float32
        assert one.numpy()[unused].tobytes() == old[unused].tobytes()
        one, plain, exact = one.numpy()[used], plain.numpy()[used], exact[used]
        if exact.size:
            assert np.abs(one - exact).max() <= 2 * np.abs(plain - exact).max() + 2.0**-22 * np.abs(exact).max()


@MODE
@pytest.mark.parametrize("case", [*CASES, *EMPTY_CASES])
def test_rows_of_one_index_become_their_sum_and_zeros(case, mode):
    *_, indices, rows = arrays(case)
    right, first = np.zeros_like(rows), {}
    for i, index in enumerate(indices.tolist()):
        right[first.setdefault(index, i)] += rows[i]  # in this order, in float32
    found = mode(custom_ops.sum_rows)(rows, indices)
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_any_numbers_are_indices_of_sums(dtype):
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    indices = np.array([most, -1, least, 0, -1, most, most - 1, least], dtype)
    rows = 2.0 ** np.arange(8, dtype=np.float32)
    for sums in (custom_ops.sum_rows, REFERENCES["SumRows"]):
        np.testing.assert_array_equal(sums(rows, tf.constant(indices)), [33, 18, 132, 8, 0, 0, 64, 0])


@MODE
def test_the_inputs_keep_their_values(mode):
    tensors = [tf.constant(x) for x in arrays(CASES[2])]
    before = [x.numpy().copy() for x in tensors]
    new = mode(lambda *each: custom_ops.adamw_rows(True, RATE, T, *each))(*tensors)
    sums = mode(custom_ops.sum_rows)(tensors[4], tensors[3])
    for tensor, kept in zip(tensors, before, strict=True):
        np.testing.assert_array_equal(tensor, kept)
    assert not np.array_equal(new.new_w, before[0])
    assert not np.array_equal(sums, before[4])


@MODE
def test_what_is_not_applied_keeps_every_bit(mode):
    w, m, v, indices, gradients = arrays(CASES[0])
    for each in (w, m, v):
        each[indices[0], :4] = ODD
    new = mode(lambda ok, *each: custom_ops.adamw_rows(ok, np.nan, T, *each))(
        tf.constant(False), w, m, v, indices, np.full_like(gradients, np.nan)
    )
    for tensor, kept in zip(new, (w, m, v), strict=True):
        assert tensor.numpy().tobytes() == kept.tobytes()


@MODE
def test_a_rate_that_is_no_number_spoils_the_weights_of_used_rows_alone(mode):
    tensors = arrays(CASES[0])
    found = mode(lambda *each: custom_ops.adamw_rows(True, np.float32(np.nan), T, *each, **OPTIONS))(*tensors)
    plain = REFERENCES["AdamWRows"](*map(tf.constant, tensors), True, np.float32(np.nan), T, **OPTIONS)
    for w, *moments in (found, plain):
        used = np.isnan(w).all(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(used), np.unique(tensors[3]))
        assert not np.isnan(w[~used]).any()
        for moment, right in zip(moments, by_hand(*tensors)[1:], strict=True):
            np.testing.assert_allclose(moment, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_element(value):
    w, m, v, _, gradients = arrays(CASES[0])
    gradients[1, 2] = value
    new = custom_ops.adamw_rows(True, RATE, T, w, m, v, np.array([3, 5, 3, 6, 8, 6, 9]), gradients)
    for tensor in new:
        odd = np.argwhere(~np.isfinite(tensor))
        np.testing.assert_array_equal(odd, [[5, 2]])
    sums = custom_ops.sum_rows(gradients, np.array([3, 5, 3, 6, 5, 6, 9]))
    np.testing.assert_array_equal(np.argwhere(~np.isfinite(sums)), [[1, 2]])


class Table(tf.Module):
    """A table with its moments, updated in a graph."""

    def __init__(self, jit_compile=False):
        super().__init__()
        self.start = arrays(CASES[3])[:3]
        self.kept = [tf.Variable(tf.zeros_like(x)) for x in self.start]  # NumPy's memory would be used elsewhere, too
        for variable, value in zip(self.kept, self.start, strict=True):
            variable.assign_add(value)
        self.step = tf.function(self._step, autograph=False, jit_compile=jit_compile)

    def _step(self, indices, gradients, ok=True):
        memory = [variables.memory(variable, gradients) for variable in self.kept]
        new = custom_ops.adamw_rows(ok, RATE, T, *memory, indices, gradients, **OPTIONS)
        for variable, value in zip(self.kept, new, strict=True):
            variable.assign(value)

    def places(self):
        return [np.asarray(memoryview(variable.read_value())).ctypes.data for variable in self.kept]


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_variables_are_updated_where_they_lie(jit_compile):
    table, (*_, indices, gradients) = Table(jit_compile), arrays(CASES[3])
    places = table.places()
    table.step(indices, gradients)
    if not jit_compile:
        assert table.places() == places
    for variable, right in zip(table.kept, by_hand(*table.start, indices, gradients), strict=True):
        np.testing.assert_allclose(variable, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ok", [True, False])
@pytest.mark.parametrize("bad", [-1, 5000, 2**40])
def test_an_index_that_is_no_row_is_named_and_nothing_moves(jit_compile, ok, bad):
    table, (*_, indices, gradients) = Table(jit_compile), arrays(CASES[3])
    indices[[700, 800]] = bad, -7
    message = re.escape(f"indices holds {bad} (element 700), but must hold rows of w, from 0 to below 5000")
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        table.step(indices, gradients, tf.constant(ok))
    for variable, old in zip(table.kept, table.start, strict=True):
        np.testing.assert_array_equal(variable, old)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"beta_1": 1.0}, ValueError, "beta_1 must be at least 0 and less than 1, but is 1.0"),
        ({"beta_2": float("nan")}, ValueError, "beta_2"),
        ({"m": np.ones((19, 5), np.float32)}, tf.errors.InvalidArgumentError, "m has shape"),
        ({"gradients": np.ones((7, 4), np.float32)}, tf.errors.InvalidArgumentError, "gradients has shape"),
        ({"indices": np.zeros(6, np.int64)}, tf.errors.InvalidArgumentError, "gradients has shape"),
        (
            {"weight": tf.ones((20, 5), tf.float64)},
            (TypeError, ValueError, tf.errors.InvalidArgumentError),
            "double|float64",
        ),
        ({"indices": tf.zeros(7)}, (TypeError, ValueError, tf.errors.InvalidArgumentError), "float"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    given = dict(zip(("weight", "m", "v", "indices", "gradients"), arrays(CASES[0]), strict=True))
    with pytest.raises(error, match=message):
        custom_ops.adamw_rows(True, RATE, T, **(given | change))


def test_gradients_flow_through_used_rows_and_others():
    w, m, v, _, gradients = map(tf.constant, arrays(CASES[0]))
    indices = tf.constant([3, 5, 3, 6, 8, 6, 9])
    with tf.GradientTape() as tape:
        tape.watch([w, gradients])
        new = custom_ops.adamw_rows(True, RATE, T, w, m, tf.zeros_like(v), indices, gradients, **OPTIONS)
        total = tf.reduce_sum(new.new_w) + tf.reduce_sum(custom_ops.sum_rows(gradients, indices)[:, 0])
    dw, dg = tape.gradient(total, [w, gradients])
    right = np.ones(w.shape)
    right[np.unique(indices)] -= RATE * OPTIONS["weight_decay"]
    np.testing.assert_allclose(dw, right, rtol=1e-6)
    assert np.all(np.isfinite(dg))
    assert np.all(dg[:, 0] > 0.5)


@pytest.mark.slow
def test_the_same_in_jax():
    jax = pytest.importorskip("jax")
    tensors = [*arrays(CASES[2])]
    tensors[3] = tensors[3].astype(np.int32)
    scalars = [jax.numpy.asarray(x) for x in (True, RATE, T)]
    found = jax.jit(lambda *each: custom_ops.adamw_rows(*each, **OPTIONS))(*scalars, *tensors)
    for one, other in zip(found, custom_ops.adamw_rows(True, RATE, T, *tensors, **OPTIONS), strict=True):
        np.testing.assert_array_equal(one, other)
    sums = jax.jit(custom_ops.sum_rows)(tensors[4], tensors[3])
    np.testing.assert_array_equal(sums, custom_ops.sum_rows(tensors[4], tensors[3]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_opcheck(name):
    inputs, attributes = ARGUMENTS[name]()
    custom_ops.opcheck(ops.find(f"TfToolkit>{name}"), *inputs, **attributes)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bad", [-1, 300, 2**40])
def test_where_no_kernel_runs_a_bad_index_makes_everything_nan(bad, jit_compile):
    *kept, indices, gradients = arrays(CASES[2])
    update = tf.function(REFERENCES["AdamWRows"], autograph=False, jit_compile=jit_compile)
    assert np.isfinite(update(*kept, indices, gradients, True, RATE, T, **OPTIONS)).all()
    indices[70] = bad
    assert np.isnan(update(*kept, indices, gradients, True, RATE, T, **OPTIONS)).all()
    np.testing.assert_array_equal(update(*kept, indices, gradients, False, RATE, T, **OPTIONS), kept)


def test_a_table_without_rows_has_none_to_name():
    *kept, indices, gradients = arrays(CASES[2])
    for new in REFERENCES["AdamWRows"](*(x[:0] for x in kept), indices, gradients, True, RATE, T, **OPTIONS):
        assert new.shape == [0, 3, 11]
