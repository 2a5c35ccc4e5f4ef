"""CRFs against all paths in float64, and against the recursion in TensorFlow; lengths, forbidden paths, extremes."""

import itertools

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.crf_log_likelihood import plain
from tftoolkit.custom_ops.crf_log_likelihood.cases import ARGUMENTS, CASES, EMPTY_CASES, call_of
from tftoolkit.custom_ops.engine import ops

FAST = (*CASES[:4], CASES[9])
SCALES = (1.0, 30.0)


def paths(x, length, transitions, start, end):
    """All paths and their scores, in float64."""
    every = np.array(list(itertools.product(range(x.shape[1]), repeat=length)))
    scores = start[every[:, 0]] + end[every[:, -1]] + sum(x[t, every[:, t]] for t in range(length))
    return every, scores + sum(transitions[every[:, t - 1], every[:, t]] for t in range(1, length))


def problem(scale=1.0, seed=0, batch=6, time=5, states=3):
    rng = np.random.default_rng(seed)
    shapes = [(batch, time, states), (states, states), (states,), (states,)]
    x, transitions, start, end = (scale * rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return x, rng.integers(0, states, (batch, time)), np.arange(batch) % (time + 1), transitions, start, end


def recursion(x, tags, lengths, transitions, start=None, end=None):
    """As one writes it in TensorFlow, in the dtype of the logits: a step at a time, with all pairs."""
    none = tf.zeros(x.shape[2:], x.dtype)
    start, end = (none if one is None else tf.cast(one, x.dtype) for one in (start, end))
    transitions = tf.cast(transitions, x.dtype)
    alpha, total = x[:, 0] + start, 0 * tf.reduce_sum(transitions) * tf.ones(x.shape[:1], x.dtype)
    for t in range(x.shape[1]):
        if t > 0:
            alpha = tf.where(
                t < lengths[:, None], x[:, t] + tf.reduce_logsumexp(alpha[:, :, None] + transitions, 1), alpha
            )
        own = tf.reduce_sum(x[:, t] * tf.one_hot(tags[:, t], x.shape[2], dtype=x.dtype), 1)
        if t > 0:
            rows = tf.one_hot(tags[:, t - 1], x.shape[2], dtype=x.dtype) @ transitions
            own += tf.reduce_sum(rows * tf.one_hot(tags[:, t], x.shape[2], dtype=x.dtype), 1)
        total += tf.where(t < lengths, own, 0)
    first, last = (tf.gather(tags, np.maximum(place, 0), batch_dims=1) for place in (0 * lengths, lengths - 1))
    total += tf.reduce_sum(start * tf.one_hot(first, x.shape[2], dtype=x.dtype), 1)
    total += tf.reduce_sum(end * tf.one_hot(last, x.shape[2], dtype=x.dtype), 1)
    return tf.where(lengths > 0, total - tf.reduce_logsumexp(alpha + end, 1), 0)


@pytest.mark.parametrize("scale", SCALES)
def test_against_all_paths(scale):
    x, tags, lengths, transitions, start, end = problem(scale)
    scores = [tf.constant(one) for one in (x, transitions, start, end)]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        found = custom_ops.crf_log_likelihood(scores[0], tags, lengths, *scores[1:])
    dx, dtransitions, dstart, dend = (one.numpy() for one in tape.gradient(found, scores))
    best, best_score = (one.numpy() for one in custom_ops.crf_decode(x, lengths, transitions, start, end))
    marginals = custom_ops.crf_marginals(x, lengths, transitions, start, end).numpy()
    wide = [one.astype(np.float64) for one in (x, transitions, start, end)]
    pairs, first, last, right = np.zeros([3, 3]), np.zeros(3), np.zeros(3), np.zeros_like(wide[0])
    for b, length in enumerate(lengths):
        np.testing.assert_array_equal(best[b, length:], -1)
        if length == 0:
            assert found[b] == best_score[b] == 0
            continue
        every, score = paths(wide[0][b], length, *wide[1:])
        p = np.exp(score - score.max())
        log_z, p = score.max() + np.log(p.sum()), p / p.sum()
        own = np.all(every == tags[b, :length], axis=1)
        np.testing.assert_allclose(found[b], score[own][0] - log_z, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(best[b, :length], every[score.argmax()])
        np.testing.assert_allclose(best_score[b], score.max(), rtol=1e-6)
        weights = own - p  # of the gradient
        for t in range(length):
            np.add.at(right[b, t], every[:, t], p)
            np.testing.assert_allclose(dx[b, t], np.bincount(every[:, t], weights, 3), atol=1e-6)
            if t > 0:
                np.add.at(pairs, (every[:, t - 1], every[:, t]), weights)
        np.add.at(first, every[:, 0], weights)
        np.add.at(last, every[:, -1], weights)
    np.testing.assert_allclose(marginals, right, rtol=1e-6, atol=1e-7)
    for one, other in ((dtransitions, pairs), (dstart, first), (dend, last)):
        np.testing.assert_allclose(one, other, atol=3e-6)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    (x, tags, lengths, *scores), _ = call_of("CrfLogLikelihood", case)
    inputs = [tf.constant(one) for one in (x, *scores) if one is not None]
    op_values.check(
        lambda x, *scores: custom_ops.crf_log_likelihood(x, tags, lengths, *scores),
        lambda x, *scores: recursion(x, tags, lengths, *scores),
        inputs, mode,
    )  # fmt: skip


@pytest.mark.parametrize("mode", op_values.MODES)
def test_marginals_are_derivatives_of_log_z(mode):
    """For longer sequences than paths can be counted of; likelihoods give log Z."""
    x, tags, lengths, *scores = problem(2.0, batch=4, time=40, states=21)
    lengths = np.array([40, 0, 1, 33])
    found = op_values.MODES[mode](lambda x: custom_ops.crf_marginals(x, lengths, *scores))(tf.constant(x))
    wide = tf.constant(x, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(wide)
        likelihood = recursion(wide, tags, lengths, *scores)
    right = tf.one_hot(tags, 21, dtype=tf.float64) - tape.gradient(likelihood, wide)
    inside = np.arange(40) < lengths[:, None]
    np.testing.assert_allclose(found, np.where(inside[..., None], right, 0), atol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(found, -1), inside, atol=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e4])
@pytest.mark.parametrize("forbidden", [True, False])
def test_transitions_that_differ_by_more_than_a_number_can_hold(size, forbidden):
    """e^-10000 is 0 in double. The only way may lead over such transitions all the same, or they be forbidden."""
    x, tags, lengths, transitions, start, end = problem(3.0, seed=1)
    lengths = np.array([5, 4, 3, 2, 1, 5])
    transitions = np.where(np.arange(3)[:, None] == np.arange(3), transitions, transitions - size)
    if forbidden:
        transitions[0, 1] = start[1] = -np.inf
    x[:, 0, 0], x[:, 2, 1] = 2 * size, 3 * size  # from state 0 to 1
    scores = [tf.constant(one.astype(np.float32)) for one in (x, transitions, start, end)]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        found = custom_ops.crf_log_likelihood(scores[0], tags, lengths, *scores[1:])
    gradients = tape.gradient(found, scores)
    marginals = custom_ops.crf_marginals(scores[0], lengths, *scores[1:]).numpy()
    wide = [one.numpy().astype(np.float64) for one in scores]
    pairs = np.zeros([3, 3])
    for b, length in enumerate(lengths):
        every, score = paths(wide[0][b], length, *wide[1:])
        p = np.exp(score - score.max())
        log_z, p = score.max() + np.log(p.sum()), p / p.sum()
        own = np.all(every == tags[b, :length], axis=1)
        np.testing.assert_allclose(found[b], score[own][0] - log_z, rtol=1e-6, atol=1e-6)
        for t in range(length):
            np.testing.assert_allclose(marginals[b, t], np.bincount(every[:, t], p, 3), atol=1e-6)
            if t > 0:
                np.add.at(pairs, (every[:, t - 1], every[:, t]), own - p)
    np.testing.assert_allclose(gradients[1], pairs, atol=1e-5)


def test_no_path_at_all():
    x = np.zeros((2, 3, 2), np.float32)
    x[0, 1] = -np.inf
    scores = [tf.constant(x), tf.zeros([2, 2])]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        found = custom_ops.crf_log_likelihood(scores[0], tf.zeros([2, 3], tf.int32), [3, 3], scores[1])
    np.testing.assert_allclose(found, [-np.inf, -3 * np.log(2)], rtol=1e-6)
    dx, dtransitions = tape.gradient(found, scores)
    np.testing.assert_allclose(dx, [np.zeros((3, 2)), [[0.5, -0.5]] * 3])
    np.testing.assert_allclose(dtransitions, [[1.5, -0.5], [-0.5, -0.5]])
    np.testing.assert_array_equal(custom_ops.crf_marginals(x, [3, 3], scores[1])[0], np.zeros((3, 2)))
    tags, score = custom_ops.crf_decode(x, [3, 3], scores[1])
    np.testing.assert_array_equal(score, [-np.inf, 0])
    assert np.all((tags.numpy() >= 0) & (tags.numpy() < 2))


def test_what_stands_behind_a_sequence_is_not_looked_at_and_nan_inside_comes_out():
    x, tags, lengths, *scores = problem()
    bad, bad_tags = x.copy(), tags.copy()
    for b, length in enumerate(lengths):
        bad[b, length:], bad_tags[b, length:] = np.nan, 77
    for one, other in zip(
        everything(bad, bad_tags, lengths, *scores), everything(x, tags, lengths, *scores), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    x[5, 2, 1] = np.nan
    found, dx, _, _, _, score, marginals = everything(x, tags, lengths, *scores)
    for one in (found, score):
        np.testing.assert_array_equal(np.isnan(one), [False] * 5 + [True])
    assert np.isnan(dx[5]).all()
    assert np.isnan(marginals[5]).all()
    assert not np.isnan(dx[:5]).any()


def everything(x, tags, lengths, *scores):
    scores = [tf.constant(one) for one in (x, *scores)]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        found = custom_ops.crf_log_likelihood(scores[0], tags, lengths, *scores[1:])
    score = custom_ops.crf_decode(scores[0], lengths, *scores[1:])[1]
    marginals = custom_ops.crf_marginals(scores[0], lengths, *scores[1:])
    return [one.numpy() for one in (found, *tape.gradient(found, scores), score, marginals)]


def test_the_best_path_of_a_long_sequence():
    """Scores grow to thousands, and differences between paths stay small."""
    x, _, _, transitions, start, end = problem(batch=2, time=3000, states=5)
    x += 100
    tags, score = custom_ops.crf_decode(x, [3000, 2999], transitions, start, end)
    for b, length in enumerate((3000, 2999)):
        best, came = x[b, 0].astype(np.float64) + start, []
        for t in range(1, length):
            arrivals = best[:, None] + transitions
            came.append(arrivals.argmax(0))
            best = arrivals.max(0) + x[b, t]
        best += end
        path = [best.argmax()]
        for back in reversed(came):
            path.append(back[path[-1]])
        np.testing.assert_array_equal(tags[b, :length], path[::-1])
        np.testing.assert_allclose(score[b], best.max(), rtol=1e-7)


def test_paths_that_differ_by_less_than_float32_can_tell():
    x = tf.constant([[[1, 0], [0, 2.0**-30]]])
    for decode in (custom_ops.crf_decode, lambda *given: plain.decode(*given, None, None)):
        np.testing.assert_array_equal(decode(x, [2], tf.zeros([2, 2]))[0], [[0, 1]])


def test_the_plain_gradient_of_a_long_sequence():
    """Second derivatives are its: scores grow to thousands, shares of them stay exact."""
    x, tags, _, transitions, start, end = problem(batch=2, time=1000)
    given = x + 5, tags, np.array([1000, 999]), transitions, start, end, np.ones(2, np.float32)
    found = tf.function(plain.gradients, autograph=False)(*map(tf.constant, given))
    for one, right in zip(found, ops.find("TfToolkit>CrfLogLikelihoodGrad")(*given), strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_nothing(case):
    (x, tags, lengths, *scores), _ = call_of("CrfLogLikelihood", case)
    found, *gradients, score, marginals = everything(x, tags, lengths, *(one for one in scores if one is not None))
    np.testing.assert_array_equal(found, np.zeros(case.batch))
    np.testing.assert_array_equal(score, np.zeros(case.batch))
    assert marginals.shape == case.shape
    assert all(np.all(one == 0) for one in gradients)


@pytest.mark.parametrize("mode", op_values.MODES)
def test_bad_tags_and_lengths(mode):
    def run(tags, lengths):
        call = op_values.MODES[mode](
            lambda tags, lengths: custom_ops.crf_log_likelihood(tf.zeros([2, 3, 4]), tags, lengths, tf.zeros([4, 4]))
        )
        return call(tf.constant(tags), tf.constant(lengths))

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"tags holds 4 \(sequence 1, place 2\), but must hold"):
        run([[0, 1, 9], [0, 3, 4]], [2, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"lengths holds 4 \(element 1\), but must be from 0 to 3"):
        run([[0, 1, 2], [0, 1, 2]], [0, 4])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"lengths holds -1 \(element 0\)"):
        run([[0, 1, 2], [0, 1, 2]], [-1, 9])


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("bad", [-1, 6])
def test_bad_lengths_of_decode_and_marginals(mode, bad):
    x, _, lengths, *scores = problem()
    lengths[[2, 4]] = bad
    for call in (custom_ops.crf_decode, custom_ops.crf_marginals):
        run = op_values.MODES[mode](lambda lengths, call=call: call(x, lengths, *scores))
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=rf"holds {bad} \(element 2\), but must be from 0 to 5"
        ):
            run(tf.constant(lengths))


@pytest.mark.parametrize("mode", [mode for mode in op_values.MODES if mode != "eager"])
def test_best_paths_in_graphs(mode):
    x, _, lengths, *scores = problem(scale=3.0)
    run = op_values.MODES[mode](lambda *given: custom_ops.crf_decode(*given))
    for one, right in zip(run(x, lengths, *scores), custom_ops.crf_decode(x, lengths, *scores), strict=True):
        np.testing.assert_array_equal(one, right)


def test_second_order_gradient():
    x, tags, lengths, *scores = problem(batch=3, time=3)
    lengths = np.array([3, 1, 2])
    tensors = [tf.constant(one) for one in (x, *scores)]

    def penalty(function):
        with tf.GradientTape() as outer:
            outer.watch(tensors)
            with tf.GradientTape() as inner:
                inner.watch(tensors)
                value = tf.reduce_sum(tf.sin(function(tensors[0], tags, lengths, *tensors[1:])))
            total = sum(tf.reduce_sum(one**2) for one in inner.gradient(value, tensors))
        return outer.gradient(total, tensors)

    for one, other in zip(penalty(custom_ops.crf_log_likelihood), penalty(recursion), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        score = custom_ops.crf_decode(tensors[0], lengths, *tensors[1:])[1]
    with pytest.raises(NotImplementedError, match="the best path has no gradient"):
        tape.gradient(score, tensors)


@pytest.mark.slow
@pytest.mark.parametrize("knows_of_xla", [True, False])
def test_gradient_of_marginals_under_xla(knows_of_xla):
    """Also where it was traced, with sizes that are unknown, by one who did not know that XLA would compile it."""
    x, _, lengths, transitions, *_ = problem(batch=3, time=3)

    def gradient(x, transitions):
        with tf.GradientTape() as tape:
            tape.watch([x, transitions])
            found = custom_ops.crf_marginals(x, lengths, transitions)
        return tape.gradient(found, [x, transitions], output_gradients=tf.cos(x))

    call = gradient
    if not knows_of_xla:
        unknown = [tf.TensorSpec([None] * one.ndim) for one in (x, transitions)]
        call = tf.function(gradient, input_signature=unknown, autograph=False).get_concrete_function()
    found = op_values.MODES["xla"](lambda *given: call(*given))(tf.constant(x), tf.constant(transitions))
    for one, right in zip(found, gradient(tf.constant(x), tf.constant(transitions)), strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-4, atol=1e-6)


def test_nan_in_transitions_is_of_the_sequences_that_use_them():
    x, tags, _, transitions, *ends = problem()
    transitions[1, 2] = np.nan
    found, dx, dtransitions, *_, marginals = everything(x, tags, np.array([1, 2, 0, 1, 5, 3]), transitions, *ends)
    np.testing.assert_array_equal(np.isnan(found), [0, 1, 0, 0, 1, 1])
    assert np.isnan(dtransitions).all()
    inside = np.arange(5) < np.array([[0], [2], [0], [0], [5], [3]])  # of those
    for one in (dx, marginals):
        np.testing.assert_array_equal(np.isnan(one), np.repeat(inside[..., None], 3, -1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.exhaustive] * (one != "CrfDecode")) for one in ARGUMENTS]
)
def test_opcheck(name):
    inputs, attributes = ARGUMENTS[name]()
    custom_ops.opcheck(ops.find(f"TfToolkit>{name}"), *inputs, **attributes)
