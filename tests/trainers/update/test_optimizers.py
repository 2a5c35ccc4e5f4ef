"""Optimizers against a float64 reference and against tf_keras."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.trainers import optimizers
from tftoolkit.trainers.update.optimizers import adam

STEPS = 40


def _problem():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=shape) for shape in ((5, 3), (3,), ())]
    gradients = [[rng.normal(size=w.shape) * 10.0 ** rng.integers(-3, 2) for w in weights] for _ in range(STEPS)]
    return weights, gradients


def _train(optimizer, compiled=False):
    weights, gradients = _problem()
    variables = [tf.Variable(w, dtype=tf.float32) for w in weights]
    optimizer.build(variables)
    step = tf.function(optimizer.step, jit_compile=True) if compiled else optimizer.step
    for i, g in enumerate(gradients):
        if i % 5 == 1:  # refused steps must leave no trace
            step([tf.fill(x.shape, np.float32(np.nan)) for x in g], tf.constant(False))
        step([tf.constant(x, tf.float32) for x in g], tf.constant(True))
    assert optimizer.iterations.numpy() == STEPS
    return [v.numpy() for v in variables]


def _reference_sgd(rate, momentum, nesterov):
    weights, gradients = _problem()
    velocities = [np.zeros_like(w) for w in weights]
    for step, g in enumerate(gradients):
        for i, x in enumerate(g):
            velocities[i] = momentum * velocities[i] - rate(step) * x
            weights[i] = weights[i] + (momentum * velocities[i] - rate(step) * x if nesterov else velocities[i])
    return weights


def _reference_adamw(rate, beta_1, beta_2, epsilon, decay):
    weights, gradients = _problem()
    m, v = ([np.zeros_like(w) for w in weights] for _ in range(2))
    for step, g in enumerate(gradients):
        for i, x in enumerate(g):
            m[i] = beta_1 * m[i] + (1 - beta_1) * x
            v[i] = beta_2 * v[i] + (1 - beta_2) * x**2
            m_hat, v_hat = m[i] / (1 - beta_1 ** (step + 1)), v[i] / (1 - beta_2 ** (step + 1))
            weights[i] = weights[i] - rate(step) * (m_hat / (np.sqrt(v_hat) + epsilon) + decay * weights[i])
    return weights


def _falling(step):
    return 0.1 / (1.0 + tf.cast(step, tf.float32))


# 40 float32 updates of weights around 1, each rounded a few times: 40 * 4 * 2^-24 = 1e-5.
def _assert_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _slow(*cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    ("momentum", "nesterov", "compiled"),
    [
        *((0.9, False, False), (0.9, True, True)),
        *_slow((0.0, False, False), (0.9, True, False), (0.0, False, True), (0.9, False, True)),
    ],
)
def test_sgd_follows_the_float64_reference(momentum, nesterov, compiled):
    found = _train(optimizers.Sgd(_falling, momentum=momentum, nesterov=nesterov), compiled)
    _assert_close(found, _reference_sgd(lambda step: 0.1 / (1 + step), momentum, nesterov))


@pytest.mark.parametrize(
    ("beta_1", "fused", "compiled"),
    [
        *((0.9, False, False), (0.0, True, False), (0.9, True, True)),
        *_slow((0.0, False, False), (0.9, True, False), (0.0, False, True), (0.9, False, True), (0.0, True, True)),
    ],
)
def test_adamw_follows_the_float64_reference(beta_1, compiled, fused):
    options = {"beta_1": beta_1, "beta_2": 0.99, "epsilon": 1e-3, "weight_decay": 0.1}
    found = _train(optimizers.AdamW(_falling, **options, fused=fused), compiled)
    _assert_close(found, _reference_adamw(lambda step: 0.1 / (1 + step), *options.values()))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda: optimizers.Sgd(0.05, momentum=0.9, nesterov=True),
            lambda keras: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        ),
        # tf_keras adds epsilon to the uncorrected root; with a tiny one the two rules are the same.
        (
            lambda: optimizers.AdamW(0.01, weight_decay=0.2, epsilon=1e-12),
            lambda keras: keras.optimizers.AdamW(0.01, weight_decay=0.2, epsilon=1e-12),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_the_same_trajectory_as_tf_keras(ours, theirs):
    keras = pytest.importorskip("tf_keras")
    weights, gradients = _problem()
    variables = [tf.Variable(w, dtype=tf.float32) for w in weights]
    optimizer = theirs(keras)
    for g in gradients:
        optimizer.apply_gradients([(tf.constant(x, tf.float32), v) for x, v in zip(g, variables, strict=True)])
    _assert_close(_train(ours()), [v.numpy() for v in variables])


def test_first_bias_correction_has_float32_precision():
    """``1 - 0.999^1`` computed naively in float32 is off by 1e-5 of its value."""
    found = adam._one_minus_power(0.999, tf.constant(1.0)).numpy()
    assert abs(found - 0.001) < 0.001 * 2.0**-22


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: optimizers.Sgd(0.1, momentum=1.0), ValueError, "momentum"),
        (lambda: optimizers.Sgd(0.1, nesterov=True), ValueError, "nesterov"),
        (lambda: optimizers.Sgd(-0.1), ValueError, "learning_rate"),
        (lambda: optimizers.AdamW(0.1, beta_2=1.5), ValueError, "beta_2"),
        (lambda: optimizers.AdamW(0.1, epsilon=-1.0), ValueError, "epsilon"),
        (lambda: optimizers.Sgd(0.1).build([]), ValueError, "no weights"),
        (lambda: optimizers.Sgd(0.1).build([tf.Variable(1)]), TypeError, "floating-point"),
        (
            lambda: optimizers.AdamW(0.1, fused=True).build([tf.Variable(1.0, dtype=tf.float64, name="wide")]),
            TypeError,
            "fused=True is for weights of at most 32 bits, but wide:0 is float64",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_an_optimizer_serves_one_set_of_weights():
    optimizer = optimizers.Sgd(0.1)
    optimizer.build([tf.Variable(1.0)])
    with pytest.raises(ValueError, match="already belongs"):
        optimizer.build([tf.Variable(1.0)])
