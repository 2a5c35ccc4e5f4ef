"""embedding_bag against float64, in every mode; padding, weights, empty bags, bad ids and borders; variables."""

import json
from pathlib import Path

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.embedding_bag.cases import ARGUMENTS, CASES, EMPTY_CASES, ids_of
from tftoolkit.custom_ops.engine import ops

MODES = ("sum", "mean", "max")
FAST = (*CASES[:3], CASES[6])
# Of a table of 16 bits each row of the gradient is rounded before those of one id are added up.
ROUNDING = {"float32": 0, "bfloat16": 2.0**-7, "float16": 2.0**-10}
IDS, BORDERS = np.array([3, 4, 4, 0, 9, 0, 7]), np.array([0, 3, 3, 7])
PADDED = np.array([[3, -1, 4, 4], [-1, -1, -1, -1], [0, 9, 0, 7]])


@tf.custom_gradient
def dense(table):
    """The table itself, whose gradient becomes a dense one, added up in float64."""
    return tf.identity(table), lambda dy: tf.cast(tf.convert_to_tensor(tf.cast(dy, tf.float64)), table.dtype)


def by_matrix(table, ids, borders, mode, weights=None):
    """With the rows of all bags in a matrix, in the table's dtype; with a dense gradient."""
    place = borders[:-1, None] + np.arange(max(1, np.max(np.diff(borders))))
    there, place = place < borders[1:, None], np.minimum(place, len(ids) - 1)
    rows = tf.gather(dense(table), ids[place])
    if mode == "max":
        lanes = tf.transpose(tf.where(there[..., None], rows, -np.inf), [0, 2, 1])
        y = tf.gather(lanes, tf.argmax(lanes, -1), batch_dims=2)
    else:
        given = tf.ones([len(ids)], table.dtype) if weights is None else dense(tf.cast(weights, table.dtype))
        scales = tf.where(there, tf.gather(given, place), 0)
        y = tf.reduce_sum(rows * scales[..., None], 1)
        total = tf.reduce_sum(scales, 1, keepdims=True)
        y = y / tf.where(np.any(there, 1)[:, None], total, 1) if mode == "mean" else y
    return tf.where(np.any(there, 1)[:, None], y, 0)


def bags(table, ids=IDS, borders=BORDERS, **options):
    """With a dense gradient of the table."""
    return custom_ops.embedding_bag(dense(table), ids, borders, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("run", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, run, mode):
    ids, borders = ids_of(case)
    inputs = [op_values.normal(case.shape, case.dtype)]
    if mode != "max" and case.dtype != "float16":
        inputs.append(op_values.normal([case.ids], "float32") ** 2 + 0.1)
    op_values.check(
        lambda table, *w: bags(table, ids, borders, mode=mode, weights=w[0] if w else None),
        lambda table, *w: by_matrix(table, ids, borders, mode, *w),
        inputs, run, absolute=ROUNDING[case.dtype] * case.ids / case.rows,
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("run", op_values.MODES)
def test_a_padded_matrix_is_the_bags_without_its_padding(run, mode):
    table = op_values.normal([10, 6], "float32")
    weights = None if mode == "max" else np.arange(1.0, 8.0, dtype=np.float32)
    spread = np.full(PADDED.shape, np.nan, np.float32)  # what stands beside -1 is not looked at
    spread[PADDED >= 0] = np.arange(1.0, 8.0)

    def found(table, ids, borders, weights):
        with tf.GradientTape() as tape:
            tape.watch(table)
            y = custom_ops.embedding_bag(table, ids, borders, weights=weights, mode=mode)
            loss = tf.reduce_sum(y * y)
        return y, tf.convert_to_tensor(tape.gradient(loss, table))

    right = found(table, IDS, BORDERS, weights)
    padded = op_values.MODES[run](lambda table: found(table, PADDED, None, None if mode == "max" else spread))(table)
    np.testing.assert_allclose(right[0], by_matrix(table, IDS, BORDERS, mode, weights), rtol=1e-6)
    for one, other in zip(padded, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_as_pytorch_does(mode):
    """torch_values.py made the file."""
    known = json.loads(Path(__file__).with_name("torch_values.json").read_text())
    right = {name: np.array(value, np.float32) for name, value in known[mode].items()}
    table, dy = tf.constant(known["table"]), tf.constant(known["dy"])
    weights = tf.constant(known["weights"]) if mode == "sum" else None
    with tf.GradientTape() as tape:
        tape.watch([table, weights] if mode == "sum" else [table])
        y = custom_ops.embedding_bag(table, known["ids"], known["borders"], mode=mode, weights=weights)
    gradients = tape.gradient(y, [table, weights] if mode == "sum" else [table], output_gradients=dy)
    np.testing.assert_allclose(y, right["y"], rtol=1e-6)
    np.testing.assert_allclose(tf.convert_to_tensor(gradients[0]), right["dtable"], rtol=1e-6)
    if mode == "sum":
        np.testing.assert_allclose(gradients[1], right["dweights"], rtol=1e-5)


@pytest.mark.parametrize("run", op_values.MODES)
def test_the_gradient_has_a_row_for_each_id(run):
    table = tf.Variable(tf.ones([10, 2]))

    def slices():
        with tf.GradientTape() as tape:
            y = custom_ops.embedding_bag(table, IDS, BORDERS, weights=tf.range(1.0, 8.0))
        return tape.gradient(y, table)

    gradient = op_values.MODES[run](slices)()
    assert isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.indices, IDS)
    np.testing.assert_array_equal(gradient.values, np.arange(1, 8)[:, None] * [[1, 1]])


def test_what_has_no_id_stands_under_one_that_is_used():
    """So that an optimizer that touches used rows only leaves all others alone."""
    table = tf.ones([10, 2])
    for ids, indices in ((PADDED, [3, 9, 4, 4, 9, 9, 9, 9, 0, 9, 0, 7]), ([[-1, -1]], [0, 0])):
        with tf.GradientTape() as tape:
            tape.watch(table)
            y = custom_ops.embedding_bag(table, ids)
        gradient = tape.gradient(y, table)
        np.testing.assert_array_equal(gradient.indices, indices)
        np.testing.assert_array_equal(gradient.values[:, 0], np.reshape(np.array(ids) >= 0, -1))


@pytest.mark.parametrize("run", op_values.MODES)
def test_a_variable_some_of_whose_rows_were_updated_is_read_as_it_is_now(run):
    table = tf.Variable(tf.zeros([10, 2]))

    def step():
        with tf.GradientTape() as tape:
            y = custom_ops.embedding_bag(table, IDS, BORDERS)
        gradient = tape.gradient(y, table)
        table.scatter_add(gradient)
        return y

    traced = op_values.MODES[run](step)
    np.testing.assert_array_equal([traced()[:, 0] for _ in range(3)], [[0, 0, 0], [5, 0, 6], [10, 0, 12]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", EMPTY_CASES)
def test_bags_without_ids_are_zeros(case, mode):
    _, borders = ids_of(case)
    table = tf.ones(case.shape)
    ids = np.zeros(case.ids, np.int64)
    y = custom_ops.embedding_bag(table, ids, borders, mode=mode)
    np.testing.assert_array_equal(y, np.zeros([case.bags, case.depth]))
    with tf.GradientTape() as tape:
        tape.watch(table)
        y = custom_ops.embedding_bag(table, np.full([case.bags, 3], -1), mode=mode)
    np.testing.assert_array_equal(y, np.zeros([case.bags, case.depth]))
    if case.rows:
        np.testing.assert_array_equal(tf.convert_to_tensor(tape.gradient(y, table)), np.zeros(case.shape))


def test_weights_that_add_up_to_nothing():
    table, weights = tf.ones([3, 2]), tf.constant([1.0, -1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch([table, weights])
        y = custom_ops.embedding_bag(table, [0, 1, 2], [0, 2, 3], weights=weights, mode="mean")
    np.testing.assert_array_equal(y, [[0, 0], [1, 1]])
    dtable, dweights = tape.gradient(y, [table, weights])
    np.testing.assert_array_equal(dtable.values, [[0, 0], [0, 0], [1, 1]])
    np.testing.assert_array_equal(dweights, [0, 0, 0])


def test_maxima_that_are_equal_or_not_finite():
    table = tf.constant([[1.0, np.nan, -np.inf], [1.0, 5.0, -np.inf], [0.0, np.nan, -np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(table)
        y = custom_ops.embedding_bag(table, [[2, 1, 0]], mode="max")
    np.testing.assert_array_equal(y, [[1, np.nan, -np.inf]])
    np.testing.assert_array_equal(tape.gradient(y, table).values, [[0, 1, 1], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("run", op_values.MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [10, -1, 2**31 - 1])
def test_an_id_that_is_no_row(bad, mode, run):
    call = op_values.MODES[run](lambda ids: custom_ops.embedding_bag(tf.zeros([10, 3]), ids, BORDERS, mode=mode))
    message = rf"values holds {bad} \(element 2\), but must hold rows of table, from 0 to below 10"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(tf.constant([0, 9, bad, 0, 10, 0, -5]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [10, -1, -7, 2**40])
def test_where_no_kernel_runs_the_bag_of_an_id_that_is_no_row_is_nan(bad, mode):
    """As on a GPU, where nothing waits to refuse it."""
    table, borders, dy = tf.ones([10, 3]), np.array([0, 2, 2, 4, 5]), tf.ones([4, 3])
    references = {name: ops.find(f"TfToolkit>{name}").run_reference for name in ARGUMENTS}
    for padded in (False, True) if bad != -1 else (False,):
        ids, options = tf.constant([0, 9, 3, bad, 4], tf.int64), {"padded": padded}
        if mode == "max":
            y = references["EmbeddingBagMax"](table, ids, borders, **options).y
        else:
            options["mean"] = mode == "mean"
            y = references["EmbeddingBag"](table, ids, borders, None, **options)
            dweights = references["EmbeddingBagWeightsGrad"](table, ids, borders, tf.ones(5), dy, **options)
            np.testing.assert_array_equal(np.isnan(dweights), [0, 0, mode == "mean", 1, 0])
        assert np.isnan(y).tolist() == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]


@pytest.mark.parametrize("borders", [[0, 3, 2, 7], [0, 3, 6], [1, 3, 7], [0, 9], [-1, 7]])
def test_where_no_kernel_runs_wrong_borders_make_everything_nan(borders):
    table, dy, weights = tf.ones([10, 3]), tf.ones([len(borders) - 1, 3]), tf.ones(7)
    first = tf.zeros(dy.shape, tf.int32)
    calls = {
        "EmbeddingBag": (table, IDS, borders, None), "EmbeddingBagMax": (table, IDS, borders),
        "EmbeddingBagGrad": (dy, IDS, borders, None), "EmbeddingBagMaxGrad": (dy, IDS, borders, first),
        "EmbeddingBagWeightsGrad": (table, IDS, borders, weights, dy),
    }  # fmt: skip
    for name, inputs in calls.items():
        found = ops.find(f"TfToolkit>{name}").run_reference(
            *(x if x is None else tf.convert_to_tensor(x) for x in inputs)
        )
        assert np.isnan(tf.nest.flatten(found)[0]).all(), name


def test_of_many_bad_ids_the_first_is_named():
    ids = np.zeros(60_000, np.int32)
    ids[40_000:] = -2
    for _ in range(5):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"holds -2 \(element 40000\).* below 4, or -1"):
            custom_ops.embedding_bag(tf.zeros([4, 64]), ids.reshape(-1, 20))


def test_wrong_arguments():
    table = tf.zeros([10, 3])
    for borders, message in [
        ([0, 3, 2, 7], r"row_splits falls from 3 to 2 \(element 2\)"),
        ([0, 3, 6], "end with the number of values, 7, got 0 and 6"),
        ([1, 3, 7], "got 1 and 7"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            custom_ops.embedding_bag(table, IDS, borders)
    with pytest.raises(tf.errors.InvalidArgumentError, match="weights"):
        custom_ops.embedding_bag(table, IDS, BORDERS, weights=[1.0, 2.0])
    for arguments, options, message in [
        ((PADDED,), {"mode": "prod"}, "mode must be 'sum', 'mean' or 'max', got 'prod'"),
        ((PADDED,), {"mode": "max", "weights": np.ones(PADDED.shape)}, "weights are for the modes"),
        ((IDS,), {}, r"values must be \[bags, width\] without row_splits, but has rank 1"),
        ((PADDED, BORDERS), {}, r"values must be \[ids\] with row_splits, but has rank 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            custom_ops.embedding_bag(table, *arguments, **options)


@pytest.mark.parametrize("mode", MODES)
def test_second_order_gradient(mode):
    table, weights = op_values.normal([10, 4], "float32"), tf.range(1.0, 8.0)

    def penalty(bag):
        with tf.GradientTape() as outer:
            outer.watch([table, weights])
            with tf.GradientTape() as inner:
                inner.watch([table, weights])
                value = tf.reduce_sum(tf.sin(bag(table, None if mode == "max" else weights)))
            first = inner.gradient(value, [table, weights], unconnected_gradients="zero")
            total = sum(tf.reduce_sum(tf.convert_to_tensor(one) ** 2) for one in first)
        return outer.gradient(total, [table, weights], unconnected_gradients="zero")

    found = penalty(lambda table, w: bags(table, weights=w, mode=mode))
    right = penalty(lambda table, w: by_matrix(table, IDS, BORDERS, mode, w))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(tf.convert_to_tensor(one), tf.convert_to_tensor(other), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * (name != "EmbeddingBag")) for name in ARGUMENTS],
)
def test_opcheck(name):
    inputs, attributes = ARGUMENTS[name]()
    custom_ops.opcheck(ops.find(f"TfToolkit>{name}"), *inputs, **attributes)
