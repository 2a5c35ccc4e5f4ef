"""Precision with loss scale, averaged weights, spikes, clipping by value."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tftoolkit import trainers
from tftoolkit.trainers.update.ema import Ema
from tftoolkit.trainers.update.guards import WINDOW
from tftoolkit.trainers.update.precision import LossScale

SLOW = pytest.mark.slow
MODES = ["eager", "graph", "xla"]
FAST_MODES = [*(pytest.param(mode, marks=SLOW) for mode in MODES[:2]), "xla"]  # which is where rules break most easily
KEY = tf.constant([1, 2])


def _wrap(function, mode):
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def _weights():
    return [tf.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=tf.float32), tf.Variable([0.5, -0.5])]


class Linear(tf.Module):
    def __init__(self, kernel):
        super().__init__()
        self.layers = [tf.Variable(kernel, dtype=tf.float32)]

    def __call__(self, x):
        return tf.cast(tf.cast(x, self.layers[0].dtype) @ self.layers[0], tf.float32)


def _fit(precision, mode="graph", steps=1, x=None, fused=False, **options):
    rng = np.random.default_rng(0)
    model = Linear(rng.normal(size=[4, 3]))
    update = trainers.Update(model, trainers.optimizers.AdamW(0.05, fused=fused), precision=precision, **options)
    x = tf.constant(rng.normal(size=[16, 4]) if x is None else x, tf.float32)
    y = tf.constant(rng.normal(size=[16, 3]), tf.float32)

    def step(x):
        def losses(batch, key):
            return 0.02 * tf.reduce_sum((model(batch[0]) - batch[1]) ** 2, -1)

        gradients = update.gradients(losses, (x, y), KEY)
        means = [total / gradients.weight for total in gradients.sums]
        return gradients.metrics() | update.apply(gradients) | {"gradient": means[0]}

    step = _wrap(step, mode)
    for _ in range(steps):
        metrics = step(x)
    return update, step, {name: value.numpy() for name, value in metrics.items()}


# What rounding inputs, weights and results of a product to p bits does to a gradient that adds up 16 of them.
@pytest.mark.parametrize(
    ("mode", "precision", "bits"),
    [
        *(("eager", "bfloat16", 8), ("xla", "float16", 11)),
        *(pytest.param(*case, marks=SLOW) for case in (("xla", "bfloat16", 8), ("graph", "float16", 11))),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (("graph", "bfloat16", 8), ("eager", "float16", 11))
        ),
    ],
)
def test_reduced_precision_is_used_and_errs_as_it_must(mode, precision, bits):
    expected = _fit("float32", mode)[2]["gradient"]
    update, _, metrics = _fit(precision, mode)
    error = np.abs(metrics["gradient"] - expected).max() / np.abs(expected).max()
    assert 2.0**-bits / 20 < error < 8 * 2.0**-bits
    assert update.weights[0].dtype == tf.float32
    assert ("loss_scale" in metrics) == (precision == "float16")


def test_reduced_precision_reaches_the_same_loss():
    losses = {precision: _fit(precision, steps=200)[2]["loss"] for precision in ("float32", "bfloat16", "float16")}
    np.testing.assert_allclose(losses["float16"], losses["float32"], rtol=2e-3)
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=2e-2)


def test_float16_keeps_gradients_that_would_underflow():
    """Their size is 1e-8, which float16 rounds to 0; the scale of 2^15 lifts them."""
    weight = Linear(np.ones([4, 3]))
    update = trainers.Update(weight, trainers.optimizers.Sgd(1.0), precision="float16")

    def tiny(x, key):
        return tf.reduce_sum(weight(x), -1) * 1e-8

    found = update.gradients(tiny, tf.ones([1, 4]), KEY)
    np.testing.assert_allclose(found.sums[0], np.full([4, 3], 1e-8), rtol=1e-3)


@pytest.mark.parametrize(
    ("mode", "fused"),
    [
        *(("eager", True), ("graph", False)),
        *(pytest.param(*case, marks=SLOW) for case in (("xla", True), ("xla", False))),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (("eager", False), ("graph", True))),
    ],
)
def test_loss_scale_halves_on_overflow_and_doubles_after_good_steps(mode, fused, monkeypatch):
    monkeypatch.setattr(LossScale, "growth_steps", 3)
    update, step, _ = _fit("float16", mode, fused=fused)
    good = tf.ones([16, 4])
    scales, skipped = [], []
    for size in [1, 1, 1, 1, 1000, 1000, 1, 1, 1, 1]:  # one good step went before
        metrics = step(good * float(size))
        scales.append(metrics["loss_scale"].numpy() / 2.0**15)
        skipped.append(metrics["skipped"].numpy())
    assert scales == [1, 1, 2, 2, 2, 1, 0.5, 0.5, 0.5, 1]
    assert skipped == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert update.skipped.numpy() == 2
    assert update.optimizer.iterations.numpy() == 9
    assert update.skipped_in_a_row.numpy() == 0


def test_overflows_count_in_a_row_once_the_scale_cannot_fall():
    update, step, _ = _fit("float16", x=np.full([16, 4], np.nan))
    for _ in range(14):
        step(tf.fill([16, 4], np.nan))
    assert update.loss_scale.scale.numpy() == 1
    assert update.skipped_in_a_row.numpy() == 0
    for count in (1, 2):
        step(tf.fill([16, 4], np.nan))
        assert update.skipped_in_a_row.numpy() == count
    assert update.skipped.numpy() == 17


@pytest.mark.parametrize("package", [keras, pytest.param(tf_keras, marks=SLOW)], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("modes", [["graph"], pytest.param(["eager", "xla"], marks=SLOW)], ids="-".join)
def test_precision_of_keras_models_is_that_of_their_policy(package, modes):
    policy = package.mixed_precision if package is tf_keras else package
    policy = policy.Policy("mixed_bfloat16") if package is tf_keras else package.DTypePolicy("mixed_bfloat16")
    layers = [package.layers.Dense(8, dtype=policy), package.layers.Dense(2, dtype="float32")]
    mixed, plain = package.Sequential(layers), package.Sequential([package.layers.Dense(2)])
    mixed.build([None, 4])
    plain.build([None, 4])
    with pytest.raises(ValueError, match="computes in bfloat16"):
        trainers.Update(mixed, trainers.optimizers.Sgd(0.1))
    with pytest.raises(ValueError, match="'mixed_float16'"):
        trainers.Update(plain, trainers.optimizers.Sgd(0.1), precision="float16")
    update = trainers.Update(mixed, package.optimizers.SGD(0.1), precision="bfloat16", ema=0.5)
    before = [weight.numpy() for weight in update.weights]
    for mode in modes:
        found = _wrap(
            lambda update=update, mixed=mixed: update.apply(
                update.gradients(lambda x, _: tf.reduce_sum(mixed(x), -1), tf.ones([3, 4]), KEY)
            ),
            mode,
        )()
        assert found["skipped"].numpy() == 0
    assert all(weight.dtype == tf.float32 for weight in update.weights)
    assert not np.array_equal(update.weights[0].numpy(), before[0])


def test_reduced_precision_refuses_what_it_cannot_reach(tmp_path):
    class Compiled(Linear):
        @tf.function
        def __call__(self, x):
            return x @ self.layers[0]

    with pytest.raises(ValueError, match=r"Compiled\.__call__"):
        trainers.Update(Compiled(np.ones([2, 2])), trainers.optimizers.Sgd(0.1), precision="bfloat16")
    with pytest.raises(ValueError, match="not its variables"):
        trainers.Update([tf.Variable(1.0)], trainers.optimizers.Sgd(0.1), precision="bfloat16")
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16"):
        trainers.Update([tf.Variable(1.0)], trainers.optimizers.Sgd(0.1), precision="half")
    model = Linear(np.ones([2, 2]))
    update = trainers.Update(model, trainers.optimizers.Sgd(0.1), precision="bfloat16")
    with pytest.raises(ValueError, match=r"precision='bfloat16'.*update\.gradients"):
        update.apply([tf.ones([2, 2])])

    def penalised(x, key):
        return tf.reduce_sum(model(x), -1) + sum(tf.nn.l2_loss(weight) for weight in model.trainable_variables)

    with pytest.raises(RuntimeError, match=r"update\.weights"):
        update.gradients(penalised, tf.ones([3, 2]), KEY)
    assert model.trainable_variables[0] is model.layers[0] is update.weights[0]
    tf.train.Checkpoint(model=model).write(str(tmp_path / "model"))  # refuses lists that were altered


@pytest.mark.parametrize("mode", FAST_MODES)
def test_the_average_against_its_formula(mode):
    decay, weights = 0.8, _weights()
    update = trainers.Update(weights, trainers.optimizers.Sgd(0.1), ema=decay)
    apply = _wrap(lambda *g: update.apply(g), mode)
    rng = np.random.default_rng(0)
    history = []
    for step in range(12):
        gradients = [tf.constant(rng.normal(size=w.shape), tf.float32) for w in weights]
        if step == 4:
            gradients[0] *= np.nan  # skipped: no tick of the average
        apply(*gradients)
        if step != 4:
            history.append([w.numpy().astype(np.float64) for w in weights])
    t = len(history)
    for i, average in enumerate(update.ema.slots["average"]):
        expected = sum((1 - decay) * decay ** (t - k) * w[i] for k, w in enumerate(history, 1)) / (1 - decay**t)
        # A dozen updates of numbers around 1, each rounded three times.
        np.testing.assert_allclose(average, expected, rtol=0, atol=12 * 3 * 2.0**-24)


def test_averaged_weights_are_exchanged_and_always_come_back():
    weights = _weights()
    update = trainers.Update(weights, trainers.optimizers.Sgd(0.1), ema=0.9)
    with update.ema_weights():  # before the first update: the initial weights
        np.testing.assert_array_equal(weights[1].numpy(), [0.5, -0.5])
    for _ in range(3):
        update.apply([tf.ones_like(w) for w in weights])
    raw, average = weights[1].numpy(), update.ema.slots["average"][1].numpy()

    class StopError(Exception):
        pass

    def evaluate():
        with update.ema_weights():
            np.testing.assert_array_equal(weights[1].numpy(), average)
            with pytest.raises(RuntimeError, match="already in place"), update.ema_weights():
                pass
            np.testing.assert_array_equal(weights[1].numpy(), average)
            with pytest.raises(RuntimeError, match="train outside"):
                update.apply([tf.ones_like(w) for w in weights])
            raise StopError

    with pytest.raises(StopError):
        evaluate()
    np.testing.assert_array_equal(weights[1].numpy(), raw)
    with pytest.raises(RuntimeError, match=r"outside of tf\.function"):
        tf.function(lambda: update.ema_weights().__enter__())()
    with (
        pytest.raises(ValueError, match="ema="),
        trainers.Update(_weights(), trainers.optimizers.Sgd(0.1)).ema_weights(),
    ):
        pass
    with pytest.raises(ValueError, match="between 0 and 1"):
        Ema(1.0, weights)


def _spiky(mode, losses, **options):
    weight = tf.Variable([1.0])
    update = trainers.Update([weight], trainers.optimizers.Sgd(0.0, **options), skip_spikes=4.0)
    step = _wrap(
        lambda loss: update.apply(update.gradients(lambda x, _: x * weight, tf.reshape(loss, [1]), KEY))["skipped"],
        mode,
    )
    return update, [int(step(tf.constant(loss, tf.float32))) for loss in losses]


@pytest.mark.parametrize("mode", FAST_MODES)
def test_spikes_are_skipped(mode):
    rng = np.random.default_rng(0)
    calm = list(rng.uniform(0.5, 1.5, WINDOW))
    early = [*calm[:10], 100.0, *calm[10:-1]]  # while the window fills, anything goes
    # The spikes pull the mean up, not the median: 5 is a spike, though less than four times the mean.
    losses = [*early, 100.0, 3.9 * np.median(early), 1.0, 50.0, 5.0, np.nan, 1.0]
    update, skipped = _spiky(mode, losses)
    assert skipped == [0] * len(early) + [1, 0, 0, 1, 1, 1, 0]
    assert update.spike_guard.spikes.numpy() == 3
    assert update.skipped.numpy() == 4
    assert update.skipped_in_a_row.numpy() == 0


def test_a_loss_that_stays_high_is_accepted_after_half_a_window():
    _, skipped = _spiky("graph", [1.0] * WINDOW + [10.0] * WINDOW)
    assert skipped == [0] * WINDOW + [1] * (WINDOW // 2 + 1) + [0] * (WINDOW // 2)


def test_what_the_guards_refuse():
    with pytest.raises(ValueError, match="skip_spikes"):
        trainers.Update(_weights(), trainers.optimizers.Sgd(0.1), skip_spikes=1.0)
    with pytest.raises(ValueError, match="not both"):
        trainers.Update(_weights(), trainers.optimizers.Sgd(0.1), clip_norm=1.0, clip_value=1.0)
    with pytest.raises(ValueError, match="clip_value"):
        trainers.Update(_weights(), trainers.optimizers.Sgd(0.1), clip_value=-1.0)
    update = trainers.Update(_weights(), trainers.optimizers.Sgd(0.1), skip_spikes=2.0)
    with pytest.raises(ValueError, match=r"skip_spikes: get the gradients from update\.gradients"):
        update.apply([tf.ones_like(w) for w in update.weights])


@pytest.mark.parametrize("mode", FAST_MODES)
def test_clipping_by_value(mode):
    weights = _weights()
    before = [w.numpy() for w in weights]
    update = trainers.Update(weights, trainers.optimizers.Sgd(1.0), clip_value=0.5)
    gradients = [tf.constant([[3.0, -3.0, 0.25], [0.5, -0.5, 0.0]]), tf.constant([1e18, -1e-18])]
    metrics = _wrap(lambda *g: update.apply(g), mode)(*gradients)
    for weight, old, gradient in zip(weights, before, gradients, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old - np.clip(gradient, -0.5, 0.5))
    assert metrics["skipped"].numpy() == 0
