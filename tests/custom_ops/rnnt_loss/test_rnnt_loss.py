"""rnnt_loss and rnnt_loss_additive against float64, in every mode; impossible labels, long sequences, bad input."""

import itertools
import math

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library
from tftoolkit.custom_ops.rnnt_loss.cases import ARGUMENTS, DTYPES, EMPTY_CASES, FLOAT_CASES, Case, call_of

assert custom_ops.rnnt_loss  # gives the ops their references
OPS = [library.load_builtin("rnnt_loss").op(name) for name in ARGUMENTS]


def exact(logits, labels, frames, counts, blank=0, fastemit=0.0):
    """Losses and their gradients in float64. Written from Graves 2012 and Yu et al. 2021."""
    losses, gradients = [], np.zeros(logits.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        for b, (time, count) in enumerate(zip(frames, counts, strict=True)):
            if time == 0:
                losses.append(0.0 if count == 0 else np.inf)
                continue
            x = logits[b, :time, : count + 1].astype(np.float64)
            log_y = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
            blanks = log_y[..., blank]
            moves = np.full(blanks.shape, -np.inf)
            for u in range(count):
                moves[:, u] = log_y[:, u, labels[b][u]]
            alpha, beta = np.full((time, count + 1), -np.inf), np.full((time + 1, count + 2), -np.inf)
            for t, u in np.ndindex(time, count + 1):
                before = alpha[t - 1, u] + blanks[t - 1, u] if t else 0.0 if u == 0 else -np.inf
                alpha[t, u] = np.logaddexp(before, alpha[t, u - 1] + moves[t, u - 1] if u else -np.inf)
            beta[time, count] = 0
            for t, u in itertools.product(reversed(range(time)), reversed(range(count + 1))):
                beta[t, u] = np.logaddexp(blanks[t, u] + beta[t + 1, u], moves[t, u] + beta[t, u + 1])
            total = beta[0, 0]
            losses.append(-total)
            if not np.isfinite(total):
                continue
            of_blank = np.exp(alpha + blanks + beta[1:, :-1] - total)
            of_label = (1 + fastemit) * np.exp(alpha + moves + beta[:-1, 1:] - total)
            dx = np.exp(log_y) * (of_blank + of_label)[..., None]
            dx[..., blank] -= of_blank
            for u in range(count):
                dx[:, u, labels[b][u]] -= of_label[:, u]
            gradients[b, :time, : count + 1] = dx
    return np.array(losses), gradients


def run(call, inputs, upstream, mode="eager", floating=1, **options):
    def both(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs[:floating])
            loss = call(*inputs, **options)
        return loss, *tape.gradient(loss, inputs[:floating], output_gradients=upstream)

    return [one.numpy() for one in op_values.MODES[mode](both)(*map(tf.convert_to_tensor, inputs))]


def check(found, right):
    """Gradients are rounded to their dtype."""
    np.testing.assert_allclose(found[0], right[0], rtol=1e-6, atol=2e-6)
    for one, other in zip(found[1:], right[1:], strict=True):
        step = {"float32": 2.0**-22, "bfloat16": 2.0**-8, "float16": 2.0**-11}[one.dtype.name]
        np.testing.assert_allclose(one.astype(np.float64), other, rtol=step, atol=1e-5 * np.abs(other).max(initial=1))


def joint_case(case, scale=1.0):
    inputs, options = call_of("RnntLoss", case)
    inputs[0] = (scale * inputs[0].astype(np.float32)).astype(case.dtype)
    upstream = np.random.default_rng(5).standard_normal(case.batch).astype(np.float32)
    losses, gradients = exact(inputs[0].astype(np.float32), *inputs[1:], **options)
    return inputs, options, upstream, [losses, gradients * upstream[:, None, None, None]]


def additive_case(case, scale=1.0):
    inputs, options = call_of("RnntLossAdditive", case)
    inputs[:2] = ((scale * x.astype(np.float32)).astype(case.dtype) for x in inputs[:2])
    upstream = np.random.default_rng(5).standard_normal(case.batch).astype(np.float32)
    encoder, predictor = (x.astype(np.float64) for x in inputs[:2])
    losses, gradients = exact(encoder[:, :, None] + predictor[:, None], *inputs[2:], **options)
    gradients *= upstream[:, None, None, None]
    return inputs, options, upstream, [losses, gradients.sum(2), gradients.sum(1)]


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", FLOAT_CASES, ids=str)
def test_values_and_gradients(case, mode):
    inputs, options, upstream, right = joint_case(case)
    check(run(custom_ops.rnnt_loss, inputs, upstream, mode, **options), right)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", FLOAT_CASES, ids=str)
def test_values_and_gradients_of_sums(case, mode):
    inputs, options, upstream, right = additive_case(case)
    check(run(custom_ops.rnnt_loss_additive, inputs, upstream, mode, floating=2, **options), right)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_short_floats(dtype):
    case = Case(2, 33, 17, 65, fastemit=0.5, dtype=dtype)
    inputs, options, upstream, right = joint_case(case)
    check(run(custom_ops.rnnt_loss, inputs, upstream, **options), right)
    inputs, options, upstream, right = additive_case(case)
    check(run(custom_ops.rnnt_loss_additive, inputs, upstream, floating=2, **options), right)


def test_every_way_by_itself():
    """Of 3 frames and 2 labels: where among the 4 steps before the last blank the labels stand."""
    logits = np.random.default_rng(0).standard_normal((1, 3, 3, 4)).astype(np.float32)
    y = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
    labels, total = [2, 3], 0.0
    for places in itertools.combinations(range(4), 2):
        t = u = 0
        product = 1.0
        for step in range(4):
            product *= y[t, u, labels[u]] if step in places else y[t, u, 0]
            t, u = (t, u + 1) if step in places else (t + 1, u)
        total += product * y[t, u, 0]
    np.testing.assert_allclose(custom_ops.rnnt_loss(logits, [labels], [3], [2]), [-math.log(total)], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_long_sequences_and_large_logits(scale):
    """Probabilities are hundreds of powers of ten apart; of sums, most cells need a shift of their own."""
    inputs, options, upstream, right = joint_case(Case(1, 300, 120, 6), scale)
    check(run(custom_ops.rnnt_loss, inputs, upstream, **options), right)
    inputs, options, upstream, right = additive_case(Case(1, 300, 120, 6), scale)
    check(run(custom_ops.rnnt_loss_additive, inputs, upstream, floating=2, **options), right)


def test_sums_of_rows_that_are_large_at_other_classes():
    """The product of their exponentials is 0 in float32: e^-300 of the largest ones."""
    encoder, predictor = np.zeros((1, 2, 5), np.float32), np.zeros((1, 2, 5), np.float32)
    encoder[0, :, 0], predictor[0, 1, 1] = 300, 300
    predictor[0, 1, 2:] = -300
    inputs = [encoder, predictor, [[3]], [2], [1]]
    losses, gradients = exact(encoder.astype(np.float64)[:, :, None] + predictor[:, None], *inputs[2:])
    found = run(custom_ops.rnnt_loss_additive, inputs, np.ones(1, np.float32), floating=2)
    check(found, [losses, gradients.sum(2), gradients.sum(1)])


def test_impossible_labels_have_an_infinite_loss_and_no_gradient():
    logits = np.random.default_rng(0).standard_normal((4, 3, 3, 5)).astype(np.float32)
    logits[1, :, :, 2] = -np.inf
    labels, frames, counts = [[1, 2]] * 4, [0, 3, 3, 0], [2, 2, 1, 0]
    loss, gradient = run(custom_ops.rnnt_loss, [logits, labels, frames, counts], np.full(4, 2, np.float32))
    np.testing.assert_array_equal(loss[[0, 1, 3]], [np.inf, np.inf, 0])
    assert np.isfinite(loss[2])
    np.testing.assert_array_equal(gradient[[0, 1, 3]], 0)
    np.testing.assert_array_equal(gradient[2, :, 2], 0)
    assert gradient[2].any()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_comes_out_and_stays_where_it_is(bad):
    logits = np.zeros((3, 4, 3, 6), np.float32)
    logits[0, 3, 0, 5] = logits[0, 0, 2, 1] = logits[1, 2, 1, 4] = bad
    logits[2, 1, 2] = -np.inf
    inputs = [logits, np.ones((3, 2), np.int32), [3, 4, 4], [1, 2, 1]]
    loss, gradient = run(custom_ops.rnnt_loss, inputs, np.ones(3, np.float32))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all((1, 2, 3)), [False, True, False])
    assert np.isfinite(gradient[::2]).all()
    encoder, predictor = np.zeros((2, 4, 6), np.float32), np.zeros((2, 3, 6), np.float32)
    encoder[0, 3, 2], predictor[1, 1, 0] = bad, bad
    found = run(
        custom_ops.rnnt_loss_additive, [encoder, predictor, *(x[:2] for x in inputs[1:])], np.ones(2, np.float32),
        floating=2,
    )  # fmt: skip
    np.testing.assert_array_equal(np.isnan(found[0]), [False, True])
    assert np.isfinite(found[1][0]).all()
    assert np.isnan(found[1][1]).all()


def test_sums_of_many_labels():
    """The joint tensor would take 8 GB; test_sequence_memory.py measures that nothing like it is formed."""
    encoder, predictor, labels = tf.zeros([1, 500, 200]), tf.zeros([1, 20_001, 200]), tf.ones([1, 20_000], tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(encoder)
        loss = custom_ops.rnnt_loss_additive(encoder, predictor, labels, [500], [20])
    # 519 over 20 ways, each with 520 steps of probability 1 / 200.
    ways = math.lgamma(520) - math.lgamma(21) - math.lgamma(500)
    np.testing.assert_allclose(loss, [520 * math.log(200) - ways], rtol=1e-6)
    assert np.isfinite(tape.gradient(loss, encoder)).all()


LOGITS = np.zeros((2, 4, 3, 5), np.float32)
WRONG = {
    r"labels\[1, 0\] is 5, but must be a class, from 0 to below 5": ([[1, 9], [5, 1]], [4, 4], [1, 2], 0),
    r"labels\[0, 1\] is 3, the blank; labels must be other classes": ([[1, 3], [2, 1]], [4, 4], [2, 2], 3),
    r"logit_lengths\[1\] is 5, but must be from 0 to 4": ([[1, 1]] * 2, [4, 5], [1, 1], 0),
    r"label_lengths\[0\] is -1, but must be from 0 to 2": ([[1, 1]] * 2, [4, 4], [-1, 1], 0),
    r"blank is 5, but must be a class": ([[1, 1]] * 2, [4, 4], [1, 1], 5),
    r"labels has shape \[2,1\]": ([[1]] * 2, [4, 4], [1, 1], 0),
}


@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message, mode):
    *inputs, blank = WRONG[message]
    inputs = [tf.constant(one) for one in inputs]
    shapes = "has shape" in message
    errors = (tf.errors.InvalidArgumentError, *[ValueError] * shapes)  # shapes are known where XLA's function is traced
    call = op_values.MODES[mode](lambda *given: custom_ops.rnnt_loss(LOGITS, *given, blank=blank))
    with pytest.raises(errors, match=message):
        call(*inputs)
    message = message.replace(r"labels has shape \[2,1\]", "has shape")  # or predictor has
    sums = LOGITS[:, :, 0], LOGITS[:, 0]
    call = op_values.MODES[mode](lambda *given: custom_ops.rnnt_loss_additive(*sums, *given, blank=blank))
    with pytest.raises(errors, match=message):
        call(*inputs)


@pytest.mark.parametrize("message", list(WRONG)[:4])
def test_where_no_kernel_runs_wrong_sequences_are_nan(message):
    """As on a GPU, where nothing waits to refuse them."""
    labels, frames, counts, blank = WRONG[message]
    which = 1 if "[1" in message.replace("\\", "") else 0
    given = [tf.constant(one) for one in (labels, frames, counts)]
    joint, encoder, predictor = tf.constant(LOGITS), tf.constant(LOGITS[:, :, 0]), tf.constant(LOGITS[:, 0])
    forward, backward, forward_additive, backward_additive = (op.run_reference for op in OPS)
    first = forward(joint, *given, blank=blank, fastemit=0.0)
    options = {"blank": blank, "fastemit": 0.0}
    ones = tf.ones([2]), tf.zeros([2, 4, 3])
    found = [first.loss, backward(joint, *given, *ones, first[1], first[2], **options)]
    first = forward_additive(encoder, predictor, *given, **options)
    found += [first.loss, *backward_additive(encoder, predictor, *given, *ones, first[1], **options)]
    for one in found:
        assert np.isnan(one[which]).all()
        assert np.isfinite(one[1 - which]).all()


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", EMPTY_CASES, ids=str)
def test_nothing(case, mode):
    inputs, options, upstream, right = joint_case(case)
    check(run(custom_ops.rnnt_loss, inputs, upstream, mode, **options), right)
    inputs, options, upstream, right = additive_case(case)
    check(run(custom_ops.rnnt_loss_additive, inputs, upstream, mode, floating=2, **options), right)


def test_a_negative_lambda():
    with pytest.raises(ValueError, match="fastemit must not be negative, got -1"):
        custom_ops.rnnt_loss(LOGITS, [[1, 1]] * 2, [4, 4], [2, 2], fastemit=-1.0)


# What sizes, dtypes and modes share is asked of ctc_loss; all of it is exhaustive.
SOME = ("runs", "invalid", "written", "bounds", "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS[2:3], ids=lambda op: op.name)
def test_promises(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, checks=SOME, **attributes)


@pytest.mark.exhaustive
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_opcheck(op):
    inputs, attributes = ARGUMENTS[op.name]()
    custom_ops.opcheck(op, *inputs, **attributes)
