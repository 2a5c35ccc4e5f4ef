"""Models and optimizers of every kind: tf.Module, tf_keras, Keras 3; names that are the same in every process."""

import itertools
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from covering import pairwise

from tftoolkit import trainers
from tftoolkit.trainers import naming

MODES = ["eager", "graph", "xla"]
KEY = tf.constant([1, 2])
PACKAGES = {"keras": keras, "tf_keras": tf_keras}


class Regression(trainers.Step):
    def __init__(self, model, optimizer, **options):
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, optimizer, **options)

    def __call__(self, batch, key):
        def losses(batch, key):
            return tf.reduce_sum((self.model(batch["x"], training=True) - batch["y"]) ** 2, -1)

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def _model(package, **last):
    model = package.Sequential(
        [
            package.layers.Dense(8, activation="tanh", kernel_initializer=package.initializers.GlorotUniform(1)),
            package.layers.Dense(2, kernel_initializer=package.initializers.GlorotUniform(2), **last),
        ]
    )
    model.build([None, 4])
    return model


def _batch():
    rng = np.random.default_rng(0)
    return {
        "x": tf.constant(rng.normal(size=[16, 4]), tf.float32),
        "y": tf.constant(rng.normal(size=[16, 2]), tf.float32),
    }


def _run(step, mode="graph", steps=10):
    function = step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")
    for _ in range(steps):
        metrics = function(_batch(), KEY)
    return metrics, {name: variable.numpy() for name, variable in step.named_variables().items()}


def _by_keras(package, optimizer):
    """The same training written the way the package's guide writes it."""
    model = _model(package)
    batch = _batch()
    weights = [getattr(weight, "value", weight) if package is keras else weight for weight in model.trainable_variables]
    for _ in range(10):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.reduce_sum((model(batch["x"], training=True) - batch["y"]) ** 2, -1))
        optimizer.apply_gradients(list(zip(tape.gradient(loss, weights), model.trainable_variables, strict=True)))
    return [weight.numpy() for weight in weights]


OPTIMIZERS = {
    "SGD": lambda package: package.optimizers.SGD(0.05, momentum=0.9),
    "AdamW": lambda package: package.optimizers.AdamW(0.01, weight_decay=0.1),
    "Nadam": lambda package: package.optimizers.Nadam(0.01),
    "schedule": lambda package: package.optimizers.Adam(
        package.optimizers.schedules.CosineDecay(0.01, 20), global_clipnorm=1.0
    ),
}


FAST = [("keras", "schedule", "graph"), ("tf_keras", "AdamW", "eager")]


def _not_refused(package, optimizer, mode):
    return (package, optimizer) != ("tf_keras", "Nadam")


def _cases():
    pairs = pairwise(PACKAGES, OPTIMIZERS, MODES, allowed=_not_refused)
    for case in itertools.product(PACKAGES, OPTIMIZERS, MODES):
        if _not_refused(*case):
            marks = () if case in FAST else pytest.mark.slow if case in pairs else pytest.mark.exhaustive
            yield pytest.param(*case, marks=marks)


@pytest.mark.parametrize(("package", "optimizer", "mode"), list(_cases()))
def test_optimizers_of_keras_do_what_they_do_by_themselves(package, optimizer, mode):
    package = PACKAGES[package]
    expected = _by_keras(package, OPTIMIZERS[optimizer](package))
    step = Regression(_model(package), OPTIMIZERS[optimizer](package))
    metrics, variables = _run(step, mode)
    for found, wanted in zip(step.update.weights, expected, strict=True):
        # Ten updates of at most 0.1, rounded otherwise: Adam divides small gradients by small roots.
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert step.update.optimizer.iterations.numpy() == 10
    assert variables["update/optimizer/iterations"] == 10
    held = {variable.ref() for variable in step.named_variables().values()}
    own = step.update.optimizer._keras.variables
    assert {naming.tf_variable(variable).ref() for variable in own} <= held
    if optimizer == "schedule":
        rate = 0.01 * 0.5 * (1 + np.cos(np.pi * 9 / 20))
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-5)


@pytest.mark.parametrize("package", [pytest.param("keras", marks=pytest.mark.slow), "tf_keras"])
def test_our_optimizer_trains_keras_models(package):
    step = Regression(_model(PACKAGES[package]), trainers.optimizers.AdamW(0.01), ema=0.9)
    before = _run(step, steps=1)[0]["loss"].numpy()
    metrics, variables = _run(step, "xla", steps=100)
    assert metrics["loss"].numpy() < 0.5 * before
    assert {
        "model/dense/kernel",
        "model/dense_1/bias",
        "update/optimizer/slots/m/model/dense/kernel",
        "update/ema/slots/average/model/dense_1/kernel",
    } <= variables.keys()


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, tf_keras.optimizers.Adam])
def test_optimizers_of_keras_train_a_tf_module(optimizer):
    model = tf.Module()
    model.weight = tf.Variable([[1.0, -1.0]] * 4)
    step = trainers.Step()
    step.model, step.update = model, trainers.Update(model, optimizer(0.1))
    step.update.apply([tf.ones([4, 2])])
    np.testing.assert_allclose(model.weight, [[0.9, -1.1]] * 4, rtol=2e-6)  # epsilon is 1e-7
    slots = {name for name in step.named_variables() if "/slots/" in name}
    assert len(slots) == 2
    assert all(name.endswith("/model/weight") for name in slots)


@pytest.mark.parametrize(("model", "optimizer"), [("keras", "tf_keras"), ("tf_keras", "keras")])
def test_mixed_generations_are_refused_by_name(model, optimizer):
    with pytest.raises(ValueError, match=r"package (keras|tf_keras)\).*package (keras|tf_keras)\)") as error:
        trainers.Update(_model(PACKAGES[model]), PACKAGES[optimizer].optimizers.SGD(0.1))
    assert "Keras 3 (package keras)" in str(error.value)
    assert "Keras 2 (package tf_keras)" in str(error.value)
    both = tf.Module()
    both.one, both.other = _model(keras), _model(tf_keras)
    with pytest.raises(ValueError, match="mixes layers of"):
        trainers.Update(both, trainers.optimizers.Sgd(0.1))


def test_what_would_tick_otherwise_is_refused():
    model = _model(keras)
    with pytest.raises(ValueError, match="accumulate"):
        trainers.Update(model, keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="float16"):
        trainers.Update(model, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    with pytest.raises(TypeError, match="legacy"):
        trainers.Update(_model(tf_keras), tf_keras.optimizers.legacy.SGD(0.1))
    with pytest.raises(TypeError, match="Nadam"):
        trainers.Update(_model(tf_keras), tf_keras.optimizers.Nadam(0.1))
    optimizer = keras.optimizers.SGD(0.1)
    trainers.Update(model, optimizer)
    with pytest.raises(ValueError, match="already belongs"):
        trainers.Update(model, optimizer)
    with pytest.raises(ValueError, match="no weights"):
        trainers.Update(keras.Sequential([keras.layers.Dense(2)]), trainers.optimizers.Sgd(0.1))


@pytest.mark.parametrize("package", PACKAGES)
def test_constraints_hold_or_are_refused(package):
    package = PACKAGES[package]
    constraint = package.constraints.NonNeg()
    with pytest.raises(ValueError, match="constraint"):
        trainers.Update(_model(package, kernel_constraint=constraint), trainers.optimizers.Sgd(0.1))
    step = Regression(_model(package, kernel_constraint=constraint), package.optimizers.SGD(0.1))
    assert _run(step)[1]["model/dense_1/kernel"].min() >= 0


@pytest.mark.parametrize("package", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow), None])
@pytest.mark.slow
def test_learning_rate_factors_and_weight_decay_exclusions(package):
    package = PACKAGES.get(package)
    source = package or tf_keras

    def trained(**options):
        optimizer = (package or trainers).optimizers.AdamW(0.01, weight_decay=0.5)
        return _run(Regression(_model(source), optimizer, **options), steps=1)[1]

    initial = Regression(_model(source), trainers.optimizers.Sgd(0.1)).named_variables()
    plain = trained()
    apart = trained(learning_rate_factors={"dense/*": 0.0, "dense_1/kernel": 0.5}, no_weight_decay=["*/bias"])
    for name in ("model/dense/kernel", "model/dense/bias"):
        np.testing.assert_array_equal(apart[name], initial[name].numpy())
    start = initial["model/dense_1/kernel"].numpy()
    np.testing.assert_allclose(
        apart["model/dense_1/kernel"] - start, 0.5 * (plain["model/dense_1/kernel"] - start), rtol=0, atol=2e-7
    )
    undecayed = trained(no_weight_decay=["dense/kernel"])
    shift = undecayed["model/dense/kernel"] - plain["model/dense/kernel"]
    np.testing.assert_allclose(shift, 0.01 * 0.5 * initial["model/dense/kernel"].numpy(), rtol=0, atol=2e-7)
    np.testing.assert_array_equal(undecayed["model/dense_1/kernel"], plain["model/dense_1/kernel"])


def test_patterns_that_say_nothing_are_refused():
    def update(**options):
        return trainers.Update(_model(tf_keras), trainers.optimizers.AdamW(0.1), **options)

    with pytest.raises(ValueError, match=r"'encoder/\*' matches none of dense/kernel, dense/bias"):
        update(no_weight_decay=["encoder/*"])
    with pytest.raises(ValueError, match=r"learning_rate_factors.*'logits'"):
        update(learning_rate_factors={"logits": 0.1})
    with pytest.raises(ValueError, match=r"'dense/kernel' matches both '\*kernel' and 'dense/\*'"):
        update(learning_rate_factors={"*kernel": 0.1, "dense/*": 0.2})
    with pytest.raises(ValueError, match="not be negative"):
        update(learning_rate_factors={"*": -1.0})
    with pytest.raises(TypeError, match="sequence of patterns"):
        update(no_weight_decay="*bias")
    with pytest.raises(ValueError, match="no weight decay"):
        trainers.Update(_model(tf_keras), trainers.optimizers.Sgd(0.1), no_weight_decay=["*bias"])


def _names(package):
    """Of everything in a step with a subclassed model."""

    class Tower(package.Model):
        def __init__(self):
            super().__init__()
            self.encoder = package.layers.Dense(4)
            self.blocks = [package.layers.Dense(4), package.layers.Dense(4)]
            self.attention = package.layers.MultiHeadAttention(2, 3)
            self.drop = package.layers.Dropout(0.1)
            self.norm = package.layers.BatchNormalization()
            self.head = package.layers.Dense(2, name="logits")

        def call(self, x, training=False):
            x = self.encoder(x)
            for block in self.blocks:
                x = block(x)
            return self.head(self.drop(self.norm(self.attention(x, x)), training=training))

    step = trainers.Step()
    step.model = Tower()
    step.model(tf.ones([1, 3, 4]))
    step.update = trainers.Update(step.model, package.optimizers.Adam(0.1), ema=0.9)
    return list(step.named_variables())


@pytest.mark.parametrize("package", PACKAGES)
def test_names_do_not_depend_on_how_many_layers_were_made_before(package):
    package = PACKAGES[package]
    package.Sequential([package.layers.Dense(2), package.layers.Dropout(0.5), package.layers.BatchNormalization()])
    names = _names(package)  # Keras' own counters have moved
    assert len(names) == len(set(names))
    expected = {
        "model/encoder/kernel",
        "model/dense/kernel",
        "model/dense_1/bias",
        "model/norm/moving_mean",
        "model/head/kernel",
        "model/attention/query/kernel",
        "update/ema/slots/average/model/norm/gamma",
    }
    assert expected <= set(names)
    assert ("model/drop/seed_generator_state" in names) == (package is keras)


@pytest.mark.slow
def test_names_do_not_depend_on_what_the_process_did_before():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # pytest finds helpers where Python doesn't
    run = subprocess.run([sys.executable, __file__], capture_output=True, check=True, text=True, env=environment)
    fresh = run.stdout
    for name, package in PACKAGES.items():
        package.Sequential([package.layers.Dense(2), package.layers.Dropout(0.5), package.layers.BatchNormalization()])
        assert json.loads(fresh.splitlines()[-1])[name] == _names(package)


def _dropout_model(package):
    return package.Sequential([package.layers.Dense(2), package.layers.Dropout(0.5, seed=3)])


@pytest.mark.parametrize("package", PACKAGES)
def test_dropout_goes_on_where_it_was_saved(package):
    package = PACKAGES[package]
    if package is tf_keras:
        tf_keras.backend.experimental.enable_tf_random_generator()
    steps = []
    try:
        for _ in range(2):
            model = _dropout_model(package)
            model.build([None, 4])
            model.layers[1].build([None, 2])
            steps.append(Regression(model, trainers.optimizers.Sgd(0.1)))
    finally:
        if package is tf_keras:
            tf_keras.backend.experimental.disable_tf_random_generator()
    first, second = steps
    _run(first, steps=3)
    for name, variable in second.named_variables().items():
        variable.assign(first.named_variables()[name])
    _run(first, steps=3)
    expected = {name: variable.numpy() for name, variable in first.named_variables().items()}
    for name, value in _run(second, steps=3)[1].items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert any("state" in name.lower() for name in expected)


def test_layers_of_keras_3_inside_a_tf_module_are_trained():
    """tf.Module's own lists don't show them."""
    model = tf.Module()
    model.scale = tf.Variable(2.0)
    model.dense = keras.layers.Dense(2)
    model.dense.build([None, 4])
    update = trainers.Update(model, trainers.optimizers.Sgd(0.1))
    assert len(update.weights) == 3
    names = naming.named_variables(model)
    assert list(names) == ["dense/bias", "dense/kernel", "scale"]


if __name__ == "__main__":
    print(json.dumps({name: _names(package) for name, package in PACKAGES.items()}))
