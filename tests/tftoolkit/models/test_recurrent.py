"""The recurrent language model against cells written down in numpy, and its state."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import models


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell_in_numpy(name, x, h, memory):
    """The next output and memory from what input and last output add to the gates, as the papers write it."""
    if name == "simple":
        return np.tanh(x + h[0]), memory
    if name == "lstm":
        i, f, o, g = np.split(x + h[0], 4, -1)
        memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(memory), memory
    (xz, xr, xn), (hz, hr, hn) = np.split(x, 3, -1), np.split(h[0], 3, -1)
    z = sigmoid(xz + hz)
    return z * h[1] + (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn), memory


@pytest.mark.parametrize("cell", ["simple", "gru", "lstm"])
def test_it_computes_the_papers_recurrence(cell):
    model = models.Recurrent(11, width=6, cell=cell, layers=2, embedding=5, seed=3, dtype=tf.float64)
    tokens = np.random.default_rng(0).integers(0, 11, [2, 20])
    x = model.embedding.table.numpy()[tokens]
    for layer in model.layers:
        kernel, recurrent, bias = (weight.numpy() for weight in (layer.kernel, layer.recurrent, layer.bias))
        h, memory, outputs = np.zeros([2, 6]), np.zeros([2, 6]), []
        for t in range(20):
            h, memory = cell_in_numpy(cell, x[:, t] @ kernel + bias, (h @ recurrent, h), memory)
            outputs.append(h)
        x = np.stack(outputs, 1)
    expected = x @ model.head.kernel.numpy() + model.head.bias.numpy()
    np.testing.assert_allclose(model(tf.constant(tokens)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["simple", "gru", "lstm"])
def test_a_carried_state_continues_the_sequence(cell):
    model = models.Recurrent(11, width=6, cell=cell, layers=2, seed=3)
    tokens = tf.constant(np.random.default_rng(0).integers(0, 11, [2, 30]))
    cache, parts = model.empty_cache(2), []
    for part in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:]):  # the last is a loop
        hidden, cache = model.decode(part, cache)
        parts.append(model.logits(hidden))
    np.testing.assert_allclose(tf.concat(parts, 1), model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_under_xla_are_those_of_the_loop_written_out():
    model = models.Recurrent(11, width=6, seed=3, dtype=tf.float64)
    tokens = tf.constant(np.random.default_rng(0).integers(0, 11, [2, 18]))
    compiled, written_out = [], []
    for gradients, forward in ((compiled, model), (written_out, one_by_one(model))):

        def step(forward=forward):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(forward(tokens)))
            return [tf.convert_to_tensor(one) for one in tape.gradient(loss, model.trainable_variables)]

        gradients += tf.function(step, jit_compile=forward is model)()
    for one, other in zip(compiled, written_out, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


def one_by_one(model):
    def forward(tokens):
        cache, parts = model.empty_cache(2), []
        for t in range(tokens.shape[1]):
            hidden, cache = model.decode(tokens[:, t : t + 1], cache)
            parts.append(model.logits(hidden))
        return tf.concat(parts, 1)

    return forward


def test_dropout_is_keyed():
    model = models.Recurrent(11, width=32, dropout=0.5, seed=3)
    tokens, cache = tf.constant([[1, 2, 3]]), model.empty_cache(1)
    plain, dropped, again = (model.decode(tokens, cache, key=key)[0].numpy() for key in (None, [1, 2], [1, 2]))
    assert (dropped == again).all()
    assert 0.2 < np.mean(dropped == 0) < 0.8
    assert not (plain == 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "rnn"}, "cell must be one of simple, gru, lstm, got 'rnn'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        models.Recurrent(11, **{"width": 4, **options})
