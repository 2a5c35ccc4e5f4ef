"""Distillation, adversarial training and MAML reach what the examples promise."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.trainers.examples import adversarial, distillation, maml
from tftoolkit.trainers.examples.parts import Mlp


@pytest.mark.slow
def test_distillation():
    accuracy = distillation.main()
    assert accuracy["student"] >= 0.94
    assert accuracy["student"] >= accuracy["student alone"] + 0.05


@pytest.mark.slow
def test_adversarial_training():
    found = adversarial.main()
    assert found["adversarial"][0] >= 0.95
    assert found["adversarial"][1] >= max(0.75, found["usual"][1] + 0.3)


def test_an_attack_stays_within_its_radius():
    images = tf.random.stateless_uniform([5, 64], [1, 2])
    moved = adversarial.attack(Mlp(64, 8, 10), images, tf.range(5), tf.zeros([5, 64]), 7)
    change = np.abs(moved - images)
    assert change.max() <= adversarial.RADIUS + 1e-6
    assert change.mean() > 0.5 * adversarial.RADIUS
    assert moved.numpy().min() >= 0
    assert moved.numpy().max() <= 1


@pytest.mark.slow
def test_maml():
    error = maml.main()
    assert error["MAML"] < min(1.2, error["all waves together"] / 2)


def test_the_outer_gradient_of_maml_goes_through_the_inner_step():
    """Against central differences in the direction of each weight's gradient."""
    data = {name: tf.constant(value) for name, value in maml.waves(4, 2 * maml.POINTS, seed=2).items()}
    model = Mlp(1, 8, 1)

    def loss():
        adapted = maml.adapted(model, data["x"][:, : maml.POINTS], data["y"][:, : maml.POINTS])
        return tf.reduce_mean(maml.errors(adapted, data["x"][:, maml.POINTS :], data["y"][:, maml.POINTS :]))

    with tf.GradientTape() as tape:
        value = loss()
    for weight, gradient in zip(
        model.trainable_variables, tape.gradient(value, model.trainable_variables), strict=True
    ):
        direction = gradient / tf.norm(gradient)
        here, size = tf.identity(weight), 1e-2
        weight.assign(here + size * direction)
        above = loss()
        weight.assign(here - size * direction)
        below = loss()
        weight.assign(here)
        np.testing.assert_allclose((above - below) / (2 * size), tf.norm(gradient), rtol=0.02)
