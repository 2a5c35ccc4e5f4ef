"""Variables that are born late, layers frozen late: an error that names them, before a step is lost."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tftoolkit import pipelines, trainers


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Late(tf.Module):
    """Makes its second weight when it is first called."""

    def __init__(self):
        super().__init__()
        self.body, self.head = tf.Variable(tf.ones([2, 4])), None

    def __call__(self, x):
        if self.head is None:
            self.head = tf.Variable(tf.ones([4, 1]))
        return x @ self.body @ self.head


def _late(package):
    class Net(package.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = _sequential(package, 1), package.layers.Dense(1)

        def call(self, x):
            return self.head(self.body(x))

    return Net()


def _sequential(package, layers):
    first = keras.Input([2]) if package is keras else package.layers.InputLayer([2])
    return package.Sequential([first, *(package.layers.Dense(2, name=f"layer_{i}") for i in range(layers))])


class Fit(trainers.Step):
    def __init__(self, model, weights=None, **options):
        super().__init__()
        self.model = model
        self.update = trainers.Update(weights or model, trainers.optimizers.Sgd(0.1), **options)

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(batch["x"]) - 1) ** 2)
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def _batches():
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    return pipelines.Pipeline(pipelines.sources.arrays({"x": x})).batch(8, drop_remainder=True)


def _train(step, directory, runner="graph"):
    trainers.Trainer(step, _batches(), directory, runner=runner).run(4)


@pytest.mark.parametrize(("make", "runner"), [
    (Late, "graph"), (lambda: _late(keras), "xla_chunk"), (lambda: _late(tf_keras), "eager"), (Late, "eager"),
    slow(Late, "xla"), slow(lambda: _late(keras), "eager"), slow(lambda: _late(keras), "graph"),
    slow(lambda: _late(tf_keras), "graph"), slow(lambda: _late(tf_keras), "xla"),
])  # fmt: skip
def test_t2_variables_made_by_the_step_are_named(tmp_path, make, runner):
    with pytest.raises(ValueError, match=r"made variables while it ran: model/head.*build the model first"):
        _train(Fit(make()), tmp_path, runner)


@pytest.mark.parametrize("runner", ["eager", "graph"])
def test_t2_variables_that_nobody_keeps(tmp_path, runner):
    class Leaky(Fit):
        def __call__(self, batch, key):
            self.hidden = [tf.Variable(1.0, name="nobodys")] if not hasattr(self, "hidden") else self.hidden
            return super().__call__(batch, key)

    Leaky._TF_MODULE_IGNORED_PROPERTIES = frozenset({"hidden", *tf.Module._TF_MODULE_IGNORED_PROPERTIES})
    with pytest.raises(ValueError, match="made variables while it ran: nobodys"):
        _train(Leaky(_sequential(keras, 1)), tmp_path, runner)


@pytest.mark.parametrize("package", [keras, tf_keras])
@pytest.mark.parametrize("as_list", [False, True])
def test_t3_a_layer_frozen_after_the_update_was_made(tmp_path, package, as_list):
    model = _sequential(package, 2)
    step = Fit(model, model.trainable_variables if as_list else None)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match=r"trained, but frozen: \['model/layer_0/bias', 'model/layer_0/kernel'\]"):
        _train(step, tmp_path)
    model.layers[0].trainable = True
    trainer = trainers.Trainer(step, _batches(), tmp_path, runner="graph")
    model.trainable = False
    with pytest.raises(ValueError, match="trained, but frozen"):
        trainer.run(4)


@pytest.mark.parametrize("package", [keras, tf_keras])
def test_t3_a_layer_unfrozen_after_the_update_was_made(tmp_path, package):
    model = _sequential(package, 2)
    model.layers[0].trainable = False
    step = Fit(model)
    _train(step, tmp_path / "frozen")
    model.layers[0].trainable = True
    with pytest.raises(ValueError, match=r"trainable, but not trained: \['layer_0/bias', 'layer_0/kernel'\]"):
        _train(step, tmp_path / "unfrozen")


@pytest.mark.parametrize("options", [{"only": ["layer_1/*"]}, {"frozen": ["layer_0/*"]}])
def test_t10_update_trains_what_its_patterns_choose(tmp_path, options):
    step = Fit(_sequential(keras, 2), **options)
    before = [weight.numpy() for weight in step.model.weights]
    _train(step, tmp_path)
    moved = [not np.array_equal(old, weight) for old, weight in zip(before, step.model.weights, strict=True)]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"only": ["layer_1/*"], "frozen": ["layer_0/*"]}, ValueError, "only or frozen, not both"),
    ({"frozen": ["head/*"]}, ValueError, "frozen: the pattern 'head/[*]' matches none"),
    ({"only": "layer_1/*"}, TypeError, "only must be a sequence of patterns"),
    ({"frozen": ["*"]}, ValueError, "no weights to train"),
])  # fmt: skip
def test_t10_bad_patterns_are_named(options, error, message):
    with pytest.raises(error, match=message):
        Fit(_sequential(keras, 2), **options)


class Raising(Fit):
    def __init__(self, error):
        super().__init__(_sequential(keras, 1))
        self._error = error

    def __call__(self, batch, key):
        @tf.function
        def inner(x):
            raise self._error

        return {"loss": inner(batch["x"])}


@pytest.mark.parametrize("error", [
    ValueError("the weights differ"), KeyError("nope"), trainers.CheckpointMismatchError("run", ["of two"]),
    trainers.TrainingDivergedError("too far"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_t10_what_a_step_raises_comes_first_and_keeps_its_type(tmp_path, error):
    with pytest.raises(type(error)) as raised:
        _train(Raising(error), tmp_path)
    assert raised.value is error
    assert "in inner" in error.__notes__[0]
    assert "in user code" not in str(error)
