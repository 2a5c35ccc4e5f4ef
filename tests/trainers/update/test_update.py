"""Clipping, the finite guard, and what Update refuses."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers

MODES = ["eager", "graph", "xla"]


def _wrap(function, mode):
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def _sgd():
    return trainers.optimizers.Sgd(0.1, momentum=0.9)


def _adamw():
    return trainers.optimizers.AdamW(0.1)


def _fused():
    return trainers.optimizers.AdamW(0.1, fused=True)


def _weights():
    return [tf.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=tf.float32), tf.Variable([0.5, -0.5])]


@pytest.mark.parametrize("mode", MODES)
def test_clipping_against_float64(mode):
    rng = np.random.default_rng(1)
    weights = _weights()
    update = trainers.Update(weights, trainers.optimizers.Sgd(1.0), clip_norm=0.5)
    apply = _wrap(lambda g: update.apply(g, weights), mode)
    for size in (1e-3, 1.0, 1e6):
        gradients = [(rng.normal(size=w.shape) * size).astype(np.float32) for w in weights]
        before = [w.numpy().astype(np.float64) for w in weights]
        metrics = apply([tf.constant(g) for g in gradients])

        wide = [g.astype(np.float64) for g in gradients]
        norm = np.sqrt(sum(np.sum(g * g) for g in wide))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        for weight, old, gradient in zip(weights, before, wide, strict=True):
            np.testing.assert_allclose(weight, old - gradient * min(1, 0.5 / norm), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [
        *(("eager", _fused), ("graph", _adamw), ("xla", _sgd)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("eager", _adamw), ("graph", _sgd), ("xla", _fused), ("xla", _adamw))
        ),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (("eager", _sgd), ("graph", _fused))),
    ],
)
def test_a_non_finite_gradient_changes_nothing(mode, optimizer):
    weights = _weights()
    update = trainers.Update(weights, optimizer(), clip_norm=1.0)
    apply = _wrap(lambda g: update.apply(g, weights), mode)
    good = [tf.ones_like(w) for w in weights]
    assert apply(good)["skipped"].numpy() == 0
    kept = [v.numpy() for v in [*weights, *update.optimizer.variables]]
    for count, poison in enumerate((np.nan, np.inf, -np.inf, 3e38), start=1):  # the last one's square is infinite
        bad = [tf.ones_like(weights[0]), tf.constant([poison, 1.0], tf.float32)]
        assert apply(bad)["skipped"].numpy() == 1
        assert (update.skipped.numpy(), update.skipped_in_a_row.numpy()) == (count, count)
        for variable, old in zip([*weights, *update.optimizer.variables], kept, strict=True):
            np.testing.assert_array_equal(variable.numpy(), old, err_msg=str(poison))
    assert apply(good)["skipped"].numpy() == 0
    assert (update.skipped.numpy(), update.skipped_in_a_row.numpy()) == (4, 0)
    assert not np.array_equal(weights[0].numpy(), kept[0])
    assert update.optimizer.iterations.numpy() == 2


def test_order_of_weights_does_not_matter_and_sparse_gradients_count():
    table, bias = tf.Variable(tf.ones([4, 2])), tf.Variable([1.0, 1.0])
    update = trainers.Update([table, bias], trainers.optimizers.Sgd(1.0))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.gather(table, [1, 1, 3])) + 5.0 * tf.reduce_sum(bias)
    update.apply(tape.gradient(loss, [bias, table]), [bias, table])
    np.testing.assert_array_equal(table.numpy(), [[1, 1], [-1, -1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(bias.numpy(), [-4, -4])


def test_metrics_tell_the_learning_rate_of_the_step():
    weight = tf.Variable([0.0])
    update = trainers.Update([weight], trainers.optimizers.Sgd(lambda step: tf.cast(step + 1, tf.float32)))
    rates = [update.apply([tf.ones([1])], [weight])["learning_rate"].numpy() for _ in range(3)]
    assert rates == [1, 2, 3]
    assert weight.numpy() == [-6]


def test_refusals_name_the_weight():
    used, unused = tf.Variable(1.0, name="used"), tf.Variable(1.0, name="unused")
    stranger = tf.Variable(1.0, name="stranger")
    update = trainers.Update([used, unused], trainers.optimizers.Sgd(0.1))
    with pytest.raises(ValueError, match=r"no gradient reaches.*unused"):
        update.apply([tf.constant(1.0), None], [used, unused])
    with pytest.raises(ValueError, match=r"missing.*unused"):
        update.apply([tf.constant(1.0)], [used])
    with pytest.raises(ValueError, match=r"not its weights.*stranger"):
        update.apply([tf.constant(1.0)] * 3, [used, unused, stranger])
    with pytest.raises(ValueError, match="1 gradients for 2 weights"):
        update.apply([tf.constant(1.0)], [used, unused])
    with pytest.raises(ValueError, match="clip_norm"):
        trainers.Update([tf.Variable(1.0)], trainers.optimizers.Sgd(0.1), clip_norm=0.0)
    with pytest.raises(TypeError, match="optimizer"):
        trainers.Update([tf.Variable(1.0)], "adam")
    with pytest.raises(ValueError, match="no weights"):
        trainers.Update(tf.Module(), trainers.optimizers.Sgd(0.1))


def test_a_step_names_slots_after_weights_and_refuses_weights_it_does_not_hold(example):
    names = list(example.Classifier(example.Mlp()).named_variables())
    assert "model/hidden" in names
    assert "update/optimizer/slots/m/model/hidden" in names
    assert len(names) == 3 * 3 + 3

    class Forgetful(trainers.Step):
        def __init__(self):
            super().__init__()
            self.update = trainers.Update([tf.Variable(1.0, name="lost")], trainers.optimizers.AdamW(0.1))

    with pytest.raises(ValueError, match="lost"):
        Forgetful().named_variables()
