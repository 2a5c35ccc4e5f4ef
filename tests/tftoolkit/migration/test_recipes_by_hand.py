"""Recipes for which TensorFlow Addons had compiled ops, random numbers or loops: against what can be said by hand."""

import datetime
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.migration.recipes import activations, callbacks, image, layers, seq2seq, text

RANDOM = np.random.default_rng(0)


def test_rrelu_draws_slopes_while_training():
    x = tf.constant([-1.0, 2.0] * 500)
    y = activations.rrelu(x, 0.25, 0.5, training=True, seed=(1, 2)).numpy()
    np.testing.assert_array_equal(y[1::2], 2.0)
    assert -0.5 <= y[::2].min() < -0.45
    assert -0.3 < y[::2].max() <= -0.25


def test_sparsemax_is_the_projection_onto_the_simplex():
    """Found by bisection in float64; along any axis."""
    x = RANDOM.normal(size=(4, 6, 3)) * 0.5
    for axis in range(3):
        low, high = x.max(axis, keepdims=True) - 1, x.max(axis, keepdims=True)
        for _ in range(60):
            middle = (low + high) / 2
            too_low = np.maximum(x - middle, 0).sum(axis, keepdims=True) > 1
            low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
        found = activations.sparsemax(tf.constant(x, tf.float32), axis)
        np.testing.assert_allclose(found, np.maximum(x - low, 0), atol=1e-6)


def test_time_stopping_ends_a_training():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse")
    stopping = callbacks.TimeStopping(seconds=0)
    x = np.ones([8, 1])
    assert len(model.fit(x, x, batch_size=1, epochs=3, callbacks=[stopping], verbose=0).epoch) == 1


def test_random_cutout_lies_inside_and_moves():
    images = tf.ones([64, 9, 7, 2])
    cut = image.random_cutout(images, (4, 2), 0, seed=(3, 4)).numpy()
    np.testing.assert_array_equal((1 - cut).sum((1, 2, 3)), 4 * 2 * 2)
    assert len({one.tobytes() for one in cut}) > 10
    assert cut[:, 0].min() == cut[:, -2].min() == 0


@pytest.mark.parametrize(("kernel", "reach", "stride", "step", "pad"), [(1, 2, 1, 1, 2), (3, 2, 2, 2, 3)])
def test_correlation_cost_by_loops(kernel, reach, stride, step, pad):
    """Dosovitskiy et al. 2015, equation 1, divided by the number of products."""
    a, b = (RANDOM.normal(size=(1, 6, 7, 3)).astype(np.float32) for _ in range(2))
    found = layers.correlation_cost(a, b, kernel, reach, stride, step, pad).numpy()
    padded = [np.pad(x[0], [(pad, pad), (pad, pad), (0, 0)]) for x in (a, b)]
    border, half = reach + kernel // 2, kernel // 2
    ways = range(-(reach // step * step), reach + 1, step)
    for (y, row), (x, column) in itertools.product(
        enumerate(range(border, padded[0].shape[0] - border, stride)),
        enumerate(range(border, padded[0].shape[1] - border, stride)),
    ):
        for channel, (dy, dx) in enumerate(itertools.product(ways, ways)):
            windows = [
                p[row + i - half : row + i + half + 1, column + j - half : column + j + half + 1]
                for p, i, j in ((padded[0], 0, 0), (padded[1], dy, dx))
            ]
            np.testing.assert_allclose(found[0, y, x, channel], np.mean(windows[0] * windows[1]), atol=1e-5)
    assert found.shape == (1, y + 1, x + 1, len(ways) ** 2)


def test_stochastic_depth_drops_whole_residuals():
    ones = tf.ones([3])
    drawn = [layers.stochastic_depth(ones, ones, 0.3, training=True, seed=(0, i)).numpy() for i in range(200)]
    assert {tuple(one) for one in drawn} == {(1, 1, 1), (2, 2, 2)}
    assert 0.2 < np.mean(drawn) - 1 < 0.4


def test_weight_normalization_changes_nothing_at_first_and_then_lengths_alone():
    layer, x = layers.WeightNormalizedDense(3, activation="tanh"), RANDOM.normal(size=(5, 4)).astype(np.float32)
    first = layer(x)
    kernel = layer.kernel.numpy()
    np.testing.assert_allclose(first, np.tanh(x @ kernel), atol=1e-6)
    layer.g.assign(2 * layer.g)
    np.testing.assert_allclose(layer(x), np.tanh(x @ (2 * kernel)), atol=1e-5)
    assert len(layer.trainable_weights) == 3


def test_noisy_dense_has_factorised_noise_that_can_be_taken_away():
    layer, x = layers.NoisyDense(50), tf.ones([1, 400])
    noisy = layer(x)
    np.testing.assert_array_equal(layer(x), noisy)
    layer.reset_noise()
    assert np.abs(layer(x) - noisy).max() > 0
    noise = layer.eps_in * layer.eps_out
    assert np.linalg.matrix_rank(noise) == 1
    assert 0.7 < np.mean(np.square(layer.eps_in)) < 0.9  # |x| of a normal number: sqrt(2 / pi) = 0.80
    layer.remove_noise()
    np.testing.assert_allclose(layer(x), x @ layer.mu_kernel + layer.mu_bias, rtol=1e-6)
    assert np.abs(layer.mu_kernel).max() <= 400**-0.5
    np.testing.assert_allclose(layer.sigma_bias, 0.5 * 400**-0.5)


# A language of 5 tokens, of which the next depends on the last one; token 4 ends it.
NEXT = np.log(RANDOM.dirichlet(np.ones(5) * 0.5, 5)).astype(np.float32)


def _step(tokens, state):
    return tf.gather(NEXT, tokens), state + 1


def test_decode_is_greedy_and_ends():
    found = seq2seq.decode(_step, tf.zeros([3]), tf.constant([0, 1, 2]), 4, 6).numpy()
    for start, row in enumerate(found):
        token, expected = start, []
        for _ in range(6):
            token = 4 if 4 in expected else int(NEXT[token].argmax())
            expected.append(token)
        assert row.tolist() == expected


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_a_wide_beam_finds_the_best_sequences(weight):
    """All of them: 5^4 is few enough to list. As in Addons, an end token counts from the step after it on."""
    sequences = {}
    for tokens in itertools.product(range(5), repeat=4):
        end = tokens.index(4) if 4 in tokens else 4
        if set(tokens[end:]) <= {4}:
            total = sum(NEXT[a, b] for a, b in itertools.pairwise([1, *tokens[: end + 1]]))
            sequences[tokens] = total / ((5 + (end + 1 if end < 3 else end)) / 6) ** weight
    best = sorted(sequences, key=sequences.get, reverse=True)[:5]
    found, scores = seq2seq.beam_search(_step, tf.zeros([2]), tf.constant([1, 1]), 4, 4, 400, weight)
    for i in range(2):
        assert [tuple(row) for row in found[i].numpy()[:5]] == best
        np.testing.assert_allclose(scores[i][:5], [sequences[one] for one in best], rtol=1e-5)


def test_a_narrow_beam_keeps_its_states_together():
    def step(tokens, state):  # the state counts what was said; the logits depend on it
        state = state + tf.one_hot(tokens, 5)
        return tf.gather(NEXT, tokens) + state @ NEXT, state

    start = tf.constant([0])
    (best, *_), (score, *_) = (x[0] for x in seq2seq.beam_search(step, tf.zeros([1, 5]), start, 4, 5, 2))
    token, state, total = 0, np.zeros(5, np.float32), 0.0
    for following in best.numpy():
        state = state + np.eye(5, dtype=np.float32)[token]
        logits = NEXT[token] + state @ NEXT
        total += logits[following] - np.log(np.exp(logits).sum())
        token = following
        if token == 4:
            break
    np.testing.assert_allclose(score, total, rtol=1e-5)


def test_scheduled_sampling_takes_some():
    targets = tf.zeros([4000], tf.int32)
    logits = tf.tile(tf.constant([[-1e9, 0.0, 0.0]]), [4000, 1])
    found = seq2seq.scheduled_sampling(targets, logits, 0.25, tf.constant([1, 2])).numpy()
    counts = np.bincount(found, minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.75, 0.125, 0.125], atol=0.03)


def test_parse_time():
    """The first is the example of Addons' documentation."""
    assert text.parse_time("2019-05-17T23:56:09.05Z", "%Y-%m-%dT%H:%M:%S.%f%z", "NANOSECOND") == 1558137369050000000
    assert text.parse_time("15:45", "%H:%M") == 56700
    assert text.parse_time("1969-12-31 23:59:59.5", "%Y-%m-%d %H:%M:%S.%f", "MILLISECOND") == -500
    assert text.parse_time("2020-01-01 00:00 +0100", "%Y-%m-%d %H:%M %z", "SECOND") == int(
        datetime.datetime(2019, 12, 31, 23, tzinfo=datetime.UTC).timestamp()
    )


def test_skip_gram_sample_pairs_neighbours():
    """With one window for all, as in the example of Addons' documentation."""
    tokens = tf.constant(["the", "quick", "brown", "fox"])
    found = list(zip(*(x.numpy().tolist() for x in text.skip_gram_sample(tokens, 1, 1)), strict=True))
    assert found == [
        *((b"the", b"quick"), (b"quick", b"the"), (b"quick", b"brown")),
        *((b"brown", b"quick"), (b"brown", b"fox"), (b"fox", b"brown")),
    ]
    many = tf.range(2000)
    first, second = text.skip_gram_sample(many, 1, 3, seed=(5, 6))
    reach = np.bincount(np.abs(first - second))
    np.testing.assert_allclose(reach[1:] / 2000, [2, 4 / 3, 2 / 3], atol=0.1)  # windows of 1, 2, 3 alike often
