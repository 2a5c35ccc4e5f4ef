"""FlashMultiHeadAttention is keras.layers.MultiHeadAttention: outputs, gradients, masks, saving."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.models.flash_multi_head_attention import FlashMultiHeadAttention

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 30, 16)).astype(np.float32)
MEMORY = RNG.standard_normal((2, 41, 16)).astype(np.float32)
MASK = (RNG.random((2, 30, 41)) < 0.7) | np.eye(30, 41, dtype=bool)  # each query sees something
CALLS = {
    "self": lambda layer, x: layer(x, x),
    "causal": lambda layer, x: layer(x, x, use_causal_mask=True),
    "cross": lambda layer, x: layer(x, MEMORY),
    "cross, causal": lambda layer, x: layer(x, MEMORY, use_causal_mask=True),
    "masked": lambda layer, x: layer(x, MEMORY, attention_mask=MASK),
    "masked, causal": lambda layer, x: layer(x, x, attention_mask=MASK[:, :, :30], use_causal_mask=True),
}


def layers(**options):
    pair = [kind(3, 8, value_dim=5, **options) for kind in (keras.layers.MultiHeadAttention, FlashMultiHeadAttention)]
    for layer in pair:
        layer.build(X.shape, MEMORY.shape)
    pair[1].set_weights([RNG.standard_normal(w.shape) / 4 for w in pair[0].get_weights()])
    pair[0].set_weights(pair[1].get_weights())
    return pair


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_outputs_and_gradients(name, jit):
    found = []
    for layer in layers():

        @tf.function(jit_compile=jit)
        def both(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = CALLS[name](layer, x)
                loss = tf.reduce_sum(y**2)
            return [y, *tape.gradient(loss, [x, *(w.value for w in layer.trainable_weights)])]

        found.append(both(tf.constant(X)))
    for theirs, ours in zip(*found, strict=True):
        # The gradient by the keys' bias is 0 but for rounding.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_in_a_functional_model_that_is_saved(tmp_path):
    inputs = keras.Input([30, 16])
    outputs = FlashMultiHeadAttention(2, 8)(inputs, inputs, use_causal_mask=True)
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    model.compile("sgd", "mse")
    model.fit(X, np.zeros([2, 30, 1]), verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        keras.models.load_model(tmp_path / "model.keras").predict(X, verbose=0), model.predict(X, verbose=0)
    )


def test_what_needs_the_scores_is_refused():
    with pytest.raises(ValueError, match=r"dropout=0\.1: it drops scores"):
        FlashMultiHeadAttention(2, 8, dropout=0.1)
    with pytest.raises(ValueError, match="return_attention_scores=True: it needs the scores"):
        layers()[1](X, X, return_attention_scores=True)
