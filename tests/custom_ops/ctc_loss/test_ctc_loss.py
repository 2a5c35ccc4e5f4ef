"""ctc_loss against PyTorch and float64, in every mode; impossible labels, long sequences, bad input."""

import numpy as np
import op_values
import pytest
import tensorflow as tf
from ctc import GOLDEN, SIZES, check, dense, exact, given, run

from tftoolkit import custom_ops
from tftoolkit.custom_ops.ctc_loss import plain
from tftoolkit.custom_ops.ctc_loss.cases import ARGUMENTS, DTYPES, FLOAT_CASES, call_of
from tftoolkit.custom_ops.engine import ops

assert custom_ops.ctc_loss  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ARGUMENTS]
golden = np.load(GOLDEN)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", FLOAT_CASES, ids=str)
def test_values_and_gradients(case, mode):
    inputs, upstream, blank = dense(case)
    found = run(custom_ops.ctc_loss, call_of("CtcLoss", case)[0], upstream, mode, blank=blank)
    check(inputs, upstream, found, blank=blank)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_short_floats(dtype):
    inputs, upstream, blank = dense(FLOAT_CASES[3])
    given = [tf.cast(inputs[0], dtype), *inputs[1:]]
    check(
        [tf.cast(given[0], tf.float32), *inputs[1:]],
        upstream,
        run(custom_ops.ctc_loss, given, upstream, blank=blank),
        blank=blank,
    )


@pytest.mark.parametrize("number", range(len(SIZES)))
def test_as_pytorch_does(number):
    *inputs, upstream = given(*SIZES[number])
    blank = SIZES[number][-1]
    found = run(custom_ops.ctc_loss, inputs, upstream, blank=blank)
    np.testing.assert_allclose(found[0], golden[f"loss_{number}"], rtol=1e-6)
    np.testing.assert_allclose(found[1], golden[f"gradient_{number}"], atol=3e-6)
    zeroed = run(custom_ops.ctc_loss, inputs, upstream, blank=blank, zero_infinity=True)
    right = golden[f"loss_{number}"]
    np.testing.assert_allclose(zeroed[0], np.where(np.isinf(right), 0, right), rtol=1e-6)
    np.testing.assert_array_equal(zeroed[1], found[1])


def test_as_tensorflow_does():
    inputs, _, blank = dense(FLOAT_CASES[1])
    logits, labels, frames, counts = (tf.constant(x) for x in inputs)
    right = tf.nn.ctc_loss(
        labels, logits, tf.cast(counts, tf.int32), tf.cast(frames, tf.int32), False, blank_index=blank
    )
    np.testing.assert_allclose(custom_ops.ctc_loss(*inputs, blank=blank), right, rtol=1e-5)


def test_ragged_labels_in_each_form_give_the_same_bits():
    inputs, upstream, blank = dense(FLOAT_CASES[3])
    expected = run(custom_ops.ctc_loss, inputs, upstream, blank=blank)
    values, counts = call_of("CtcLoss", FLOAT_CASES[3])[0][1::2]
    ragged = tf.RaggedTensor.from_row_lengths(values, counts)
    for labels, lengths in (values, counts), (ragged, None), (inputs[1].astype(np.int64), counts.astype(np.int64)):
        found = run(custom_ops.ctc_loss, [inputs[0], labels, inputs[2], lengths], upstream, blank=blank)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("time", "count", "scale"),
    [pytest.param(3000, 1200, 1.0, marks=pytest.mark.slow), (2100, 1000, 30.0), (1500, 3, 100.0)],
)
def test_long_sequences_and_large_logits(time, count, scale):
    """Probabilities of states at one frame are hundreds of powers of ten apart; a loss is thousands."""
    rng = np.random.default_rng(0)
    inputs = [
        (scale * rng.standard_normal((1, time, 8))).astype(np.float32), rng.integers(1, 8, (1, count)),
        np.array([time]), np.array([count]),
    ]  # fmt: skip
    upstream = np.ones(1, np.float32)
    found = run(custom_ops.ctc_loss, inputs, upstream)
    losses, gradients = exact(*inputs)
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradients, atol=1e-5)


def test_a_network_that_says_blank_with_certainty():
    """The way to the end is e^-8000 of the likeliest at its side, where no common scale keeps it."""
    logits = np.zeros((1, 500, 5), np.float32)
    logits[..., 0] = 20
    labels, lengths = 1 + np.arange(400)[None] % 4, (np.array([500]), np.array([400]))
    found = run(custom_ops.ctc_loss, [logits, labels, *lengths], np.ones(1, np.float32))
    losses, gradients = exact(logits, labels, *lengths)
    assert 5000 < losses[0] < 10_000
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    np.testing.assert_allclose(found[1], gradients, atol=1e-5)


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_impossible_labels_have_an_infinite_loss_and_no_gradient(zero_infinity):
    """Too many; as many as frames but with a repetition; of a class that is masked; and two that are possible."""
    logits = np.random.default_rng(0).standard_normal((5, 4, 6)).astype(np.float32)
    logits[2, :, 3] = -np.inf
    labels = [[1, 2, 3, 4, 5], [1, 1, 2, 3, 0], [3, 0, 0, 0, 0], [1, 2, 3, 4, 0], [9, 9, 9, 9, 9]]
    frames, counts = [4, 4, 4, 4, 0], [5, 4, 1, 4, 0]
    loss, gradient = run(
        custom_ops.ctc_loss, [logits, *map(tf.constant, (labels, frames, counts))], np.full(5, 3, np.float32),
        zero_infinity=zero_infinity,
    )  # fmt: skip
    np.testing.assert_array_equal(loss[:3], 0 if zero_infinity else np.inf)
    assert np.isfinite(loss[3])
    assert loss[4] == 0
    np.testing.assert_array_equal(gradient[[0, 1, 2, 4]], 0)
    assert np.isfinite(gradient[3]).all()
    assert gradient[3].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_comes_out_and_stays_where_it_is(bad):
    logits = np.zeros((3, 40, 6), np.float32)
    logits[0, 33, 5] = logits[1, 20, 1] = bad
    logits[2, 7] = -np.inf
    loss, gradient = run(
        custom_ops.ctc_loss, [logits, np.ones((3, 2), np.int32), [33, 40, 7], [2, 2, 2]], np.ones(3, np.float32)
    )
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all((1, 2)), [False, True, False])
    assert np.isfinite(gradient[::2]).all()
    logits[0, 33, 5] = 0
    assert np.isnan(custom_ops.ctc_loss(logits, np.ones((3, 2), np.int32), [40, 40, 8], [2, 2, 2])[2])


def test_an_empty_batch_and_no_frames():
    empty = custom_ops.ctc_loss(
        np.zeros((0, 4, 5), np.float32), np.zeros((0, 2), np.int32), *[np.zeros(0, np.int32)] * 2
    )
    assert empty.shape == [0]
    loss = custom_ops.ctc_loss(np.zeros((2, 0, 5), np.float32), [[1], [2]], [0, 0], [0, 1])
    np.testing.assert_array_equal(loss, [0, np.inf])


LOGITS = np.zeros((2, 4, 5), np.float32)
WRONG = {
    r"labels\[1, 0\] is 5, but must be a class, from 0 to below 5": ([[1, 9], [5, 1]], [4, 4], [1, 2], 0),
    r"labels\[0, 1\] is -1, but must be a class": ([[1, -1], [5, 1]], [4, 4], [2, 2], 0),
    r"labels\[2\] is 3, the blank; labels must be other classes": ([1, 2, 3, 3], [4, 4], [2, 2], 3),
    r"logit_lengths\[1\] is 5, but must be from 0 to 4": ([[1], [1]], [4, 5], [1, 1], 0),
    r"logit_lengths\[0\] is -1": ([[1], [1]], [-1, 5], [1, 1], 0),
    r"label_lengths\[1\] is 2, but must be from 0 to 1, the last dimension of labels": ([[1], [1]], [4, 4], [1, 2], 0),
    r"label_lengths\[1\] is 3, but must be from 0 to 2, the labels that are left": ([1, 2, 3], [4, 4], [1, 3], 0),
    r"labels has 3 values, but label_lengths adds up to 2": ([1, 2, 3], [4, 4], [1, 1], 0),
    r"blank is 5, but must be a class": ([[1], [1]], [4, 4], [1, 1], 5),
    r"blank is -1": ([[1], [1]], [4, 4], [1, 1], -1),
    r"labels has shape \[3, 1\], but must be \[2, labels\]": ([[1]] * 3, [4, 4], [1, 1], 0),
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("mode", ["eager", pytest.param("xla", marks=pytest.mark.slow)])
def test_wrong_arguments(message, mode):
    *inputs, blank = WRONG[message]
    call = op_values.MODES[mode](lambda *inputs: custom_ops.ctc_loss(*inputs, blank=blank))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(LOGITS, *map(tf.constant, inputs))


@pytest.mark.parametrize("message", list(WRONG)[:-3])
def test_where_no_kernel_runs_wrong_sequences_are_nan(message):
    """As the kernels on a GPU have it, where nothing waits to refuse them."""
    *inputs, blank = WRONG[message]
    given = [LOGITS, *map(tf.constant, inputs)]
    forward, backward = (op.run_reference for op in OPS)
    loss, largest, total = forward(*given, blank=blank, zero_infinity=False)
    gradient = backward(*given, tf.ones([2]), tf.zeros_like(total), largest, total, blank=blank)
    wrong = np.isnan(loss)
    assert wrong.any()
    np.testing.assert_array_equal(np.isnan(gradient), np.broadcast_to(wrong[:, None, None], gradient.shape))


def test_lengths_are_given_once():
    ragged = tf.ragged.constant([[1], [2, 3]])
    with pytest.raises(TypeError, match="label_lengths must be None"):
        custom_ops.ctc_loss(LOGITS, ragged, [4, 4], [1, 2])
    with pytest.raises(TypeError, match="label_lengths may be left out"):
        custom_ops.ctc_loss(LOGITS, [[1], [2]], [4, 4])


@pytest.mark.slow
@pytest.mark.parametrize("order", [pytest.param(2, marks=pytest.mark.exhaustive), 3])
def test_derivatives_of_higher_order(order):
    """Also where they were traced, with sizes that are unknown, by one who did not know that XLA would compile them."""
    logits, *lengths = map(tf.constant, call_of("CtcLoss", FLOAT_CASES[0])[0])

    def derivative(loss, logits, order):
        if order == 0:
            return loss(logits)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.reduce_sum(tf.sin(derivative(loss, logits, order - 1)))
        return tape.gradient(value, logits)

    def ours(logits):
        return derivative(lambda x: custom_ops.ctc_loss(x, *lengths), logits, order)

    def plainly(logits):
        found = plain.losses(plain.Labels(logits, *lengths, 0), logits, False)[0]
        return tf.where(tf.math.is_finite(found), found, tf.zeros_like(found))

    right = derivative(plainly, logits, order)
    np.testing.assert_allclose(ours(logits), right, rtol=1e-3, atol=1e-4)
    if order == 2:
        unknown = tf.function(ours, input_signature=[tf.TensorSpec([None] * 3)], autograph=False)
        traced = unknown.get_concrete_function()
        np.testing.assert_allclose(op_values.MODES["xla"](lambda x: traced(x))(logits), right, rtol=1e-3, atol=1e-4)


# The rest is exhaustive: its reference is a loop, which takes long to trace in so many ways.
SOME = ("runs", "invalid", "written", "bounds", "modes", "nan", "gradient")


@pytest.mark.slow
def test_promises():
    inputs, attributes = ARGUMENTS["CtcLoss"]()
    custom_ops.opcheck(OPS[0], *inputs, checks=SOME, **attributes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)
