"""Modules in models of Keras 3: they are trained, saved and loaded with them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import models

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 10, 16)).astype(np.float32)
Y = X.mean(axis=(1, 2))[:, None]


def model(seed=0):
    attention = models.Attention(16, 2, causal=True, rotary=models.Rotary(), rng=seed)
    block = models.TransformerBlock(
        attention, models.Mlp(16, 32, activation="swiglu"), *(models.RmsNorm(16) for _ in "12")
    )
    inputs = keras.Input([10, 16])
    x = models.KerasLayer(block)(inputs)
    x = keras.layers.GlobalAveragePooling1D()(models.KerasLayer(models.LayerNorm(16))(x))
    return keras.Model(inputs, keras.layers.Dense(1)(x)), block


def test_weights_are_the_module_s():
    whole, block = model()
    assert {id(value) for value in block.trainable_variables} <= {id(one.value) for one in whole.trainable_weights}
    assert len(whole.trainable_weights) == len(block.trainable_variables) + 2 + 2
    expected = block(X)
    np.testing.assert_allclose(whole.layers[1](X), expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_it_trains_and_is_saved(tmp_path, jit):
    whole, block = model()
    before = block.mlp.up.kernel.numpy()
    whole.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=jit)
    losses = whole.fit(X, Y, batch_size=8, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert np.abs(block.mlp.up.kernel - before).max() > 1e-3
    whole.save_weights(tmp_path / "w.weights.h5")
    other, _ = model(seed=1)
    other.load_weights(tmp_path / "w.weights.h5")
    np.testing.assert_allclose(other.predict(X, verbose=0), whole.predict(X, verbose=0), rtol=0, atol=1e-6)


def dropping(seed):
    block = models.TransformerBlock(
        models.Attention(16, 2), models.Mlp(16, 32), *(models.LayerNorm(16) for _ in "12"), dropout=0.5
    )
    return models.KerasLayer(block, seed=seed)


def test_dropout_drops_in_training_and_repeats_with_its_seed():
    layer = dropping(3)
    kept = layer(X)
    np.testing.assert_array_equal(layer(X), kept)
    first, second = layer(X, training=True), layer(X, training=True)
    assert np.abs(first - kept).max() > 0.1
    assert np.abs(first - second).max() > 0.1
    again, other = dropping(3), dropping(4)
    np.testing.assert_array_equal([again(X, training=True), again(X, training=True)], [first, second])
    assert np.abs(other(X, training=True) - first).max() > 0.1
    key = [1, 2]
    np.testing.assert_array_equal(layer(X, training=True, key=key), layer.module(X, key=tf.constant(key)))
    # The place in the sequence of keys is of the layer's state, so that what saves it goes on with the third.
    assert layer.seed_generator.state.value.numpy().tolist() == [3, 2]
    assert "seed_generator_state" in [variable.name for variable in layer.variables]


@pytest.mark.slow
@pytest.mark.parametrize("jit", [False, True])
def test_dropout_in_a_compiled_step_is_another_one_each_time(jit):
    inputs = keras.Input([10, 16])
    whole = keras.Model(inputs, dropping(0)(inputs))
    whole.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit)
    losses = whole.fit(X, np.zeros_like(X), batch_size=8, epochs=3, verbose=0).history["loss"]
    assert len({*losses, whole.evaluate(X, np.zeros_like(X), verbose=0)}) == 4


def test_moving_statistics_are_not_trained():
    layer = models.KerasLayer(models.ResNet((1, 1, 1, 1), classes=2, width=4))
    assert len(layer.non_trainable_weights) == 2 * (1 + 4 * 2 + 3)
    before = layer.module.bn1.mean.numpy()
    images = tf.ones([2, 8, 8, 3])
    layer(images)
    np.testing.assert_array_equal(layer.module.bn1.mean, before)
    layer(images, training=True)
    assert np.abs(layer.module.bn1.mean - before).max() > 0


def test_a_module_without_variables():
    with pytest.raises(ValueError, match="Rotary has no variables"):
        models.KerasLayer(models.Rotary())
