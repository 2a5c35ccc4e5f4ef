"""find_lr, find_batch_size, explain_retracing, counted operations."""

import contextlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tftoolkit import pipelines, trainers
from tftoolkit.trainers.runners import flops


def _assert_unchanged(step, before, example):
    for name, value in example.values(step).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.mark.parametrize("runner", ["graph", pytest.param("auto", marks=pytest.mark.slow)])
def test_find_lr_suggests_a_rate_that_learns_and_leaves_no_trace(example, runner):
    step, pipeline = example.Classifier(example.Mlp(0.0), trainers.optimizers.AdamW(3e-3)), example.pipeline()
    before, schedule = example.values(step), step.update.optimizer.schedule
    found = trainers.find_lr(step, pipeline, low=1e-5, high=10.0, steps=120, runner=runner)
    _assert_unchanged(step, before, example)
    assert step.update.optimizer.schedule is schedule
    assert pipeline.position == 0
    assert 1e-4 < found.suggestion < 0.3
    assert len(found.losses) == len(found.learning_rates) <= 120
    assert found.losses.min() < 0.7 * found.losses[0]


def test_a_step_of_a_strategy_is_refused(example):
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        step = example.Classifier(example.Mlp(0.0), trainers.optimizers.AdamW(3e-3))
    for search in (
        lambda: trainers.find_lr(step, example.pipeline()),
        lambda: trainers.find_batch_size(step, lambda size: example.pipeline()),
    ):
        with pytest.raises(ValueError, match=r"find_\w+ is for one process .* belong to a MirroredStrategy"):
            search()


def test_find_lr_on_a_quadratic_stops_where_it_must_diverge(example):
    """Gradient descent on w² diverges for rates above 1: the sweep ends soon after."""

    class Quadratic(trainers.Step):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable([1.0])
            self.update = trainers.Update([self.w], trainers.optimizers.Sgd(0.1))

        def __call__(self, batch, key):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self.w**2 + 0.0 * batch["x"]) + 1.0
            self.update.apply([tape.gradient(loss, self.w)], [self.w])
            return {"loss": loss}

    pipeline = pipelines.Pipeline(pipelines.sources.arrays({"x": np.zeros(8, np.float32)})).batch(1)
    found = trainers.find_lr(Quadratic(), pipeline, low=1e-3, high=100.0, steps=60, runner="graph")
    assert 1 < found.learning_rates[-1] < 100
    assert 1e-3 < found.suggestion < 1


def test_find_lr_is_not_misled_by_a_first_batch_that_is_hard():
    class Falling(trainers.Step):
        """The loss falls from 2 to 1 as the learning rate passes 1e-2; the first batch is worse by a half."""

        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(0.0)
            self.update = trainers.Update([self.weight], trainers.optimizers.Sgd(0.1))

        def __call__(self, batch, key):
            rate = self.update.apply([tf.constant(0.0)])["learning_rate"]
            return {"loss": 2.0 - tf.sigmoid(3.0 * (tf.math.log(rate) - np.log(1e-2))) + batch["x"][0]}

    hard = np.zeros(200, np.float32)
    hard[0] = 0.5
    pipeline = pipelines.Pipeline(pipelines.sources.arrays({"x": hard})).batch(1)
    found = trainers.find_lr(Falling(), pipeline, low=1e-5, high=10.0, runner="graph")
    assert 3e-3 < found.suggestion < 1e-1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "scheduled"),
    [
        pytest.param(keras, True, id="keras-schedule"),
        pytest.param(tf_keras, False, id="tf_keras-constant", marks=pytest.mark.slow),
        pytest.param(keras, False, id="keras-constant", marks=pytest.mark.exhaustive),
        pytest.param(tf_keras, True, id="tf_keras-schedule", marks=pytest.mark.slow),
    ],
)
def test_find_lr_sweeps_an_optimizer_of_keras(package, scheduled, example):
    """Gradient descent: the same rates as ours, so the same losses, whatever rate it was made with."""

    def steps():
        rate = package.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.5) if scheduled else 1e-3
        for optimizer in (package.optimizers.SGD(rate), trainers.optimizers.Sgd(1e-3)):
            yield example.Classifier(example.Mlp(0.0), optimizer)

    found = []
    for step in steps():
        before = example.values(step)
        learning_rate = step.update.optimizer.learning_rate.numpy()
        found.append(trainers.find_lr(step, example.pipeline(), low=1e-4, high=1.0, steps=20, runner="graph"))
        _assert_unchanged(step, before, example)
        assert step.update.optimizer.learning_rate.numpy() == learning_rate
    np.testing.assert_allclose(found[0].losses, found[1].losses, rtol=1e-5)
    assert found[0].losses[-1] < found[0].losses[0]


def test_find_lr_restores_after_an_error_and_names_what_is_wrong(example):
    step = example.Classifier(example.Mlp())
    before = example.values(step)
    with pytest.raises(ValueError, match=r"no metric 'cost', but \['accuracy', .*'loss'"):
        trainers.find_lr(step, example.pipeline(), loss="cost", steps=10, runner="graph")
    _assert_unchanged(step, before, example)
    for bad, named in (({"low": 1, "high": 0.1}, "low < high"), ({"steps": 2}, "steps")):
        with pytest.raises(ValueError, match=named):
            trainers.find_lr(step, example.pipeline(), **bad)
    step.second = trainers.Update([tf.Variable(1.0)], trainers.optimizers.Sgd(0.1))
    with pytest.raises(ValueError, match="find_lr needs a step with one Update, but this has 2"):
        trainers.find_lr(step, example.pipeline())


@pytest.mark.slow
def test_find_batch_size_doubles_until_it_does_not_pay(example):
    step = example.Classifier(example.Mlp())
    before = example.values(step)

    def pipeline(size):
        return pipelines.Pipeline(pipelines.sources.arrays(example.digits())).batch(size, drop_remainder=True)

    tried = trainers.find_batch_size(step, pipeline, first=8, most=64, gain=1.0, runner="graph", seconds=0.05)
    _assert_unchanged(step, before, example)
    assert [row.batch_size for row in tried] == [8, 16, 32, 64][: len(tried)]
    assert len(tried) > 1
    assert all(row.examples_per_second > 0 and row.peak_memory_bytes > 2**20 for row in tried)
    with pytest.raises(ValueError, match="first <= most"):
        trainers.find_batch_size(step, pipeline, first=0)


@pytest.mark.slow  # TensorFlow waits ten seconds for memory before it gives up
def test_find_batch_size_ends_where_memory_ends():
    """A tensor of 2^50 bytes per example of 16 can't be had on any machine."""

    class Greedy(trainers.Step):
        def __call__(self, batch, key):
            rows = tf.shape(batch["x"])[0]
            return {"loss": tf.reduce_sum(tf.zeros(tf.stack([tf.where(rows > 8, 2**28, 1), 2**20])))}

    def pipeline(size):
        return pipelines.Pipeline(pipelines.sources.arrays({"x": np.zeros(64, np.float32)})).batch(size)

    tried = trainers.find_batch_size(Greedy(), pipeline, first=4, most=64, gain=1.0, runner="eager", seconds=0.01)
    assert tried[-1].examples_per_second == 0 or tried[-1].batch_size < 16


@pytest.mark.parametrize(
    ("second", "reasons"),
    [
        ({"batch": {"x": tf.ones([2, 2])}}, [r"batch\['x'\]: the shape was \(3, 2\), now it is \(2, 2\)"]),
        ({"batch": {"x": tf.ones([3, 2], tf.float64)}}, [r"batch\['x'\]: the dtype was float32, now it is float64"]),
        ({"scale": 3.0}, [r"scale: the Python value was 2.0, now it is 3.0; a tensor would need no new trace"]),
        ({"scale": tf.constant(2.0)}, [r"scale: it was the Python value 2.0, now it is a tensor float32\(\)"]),
        ({"training": True}, [r"training: the Python value was False, now it is True$"]),
        ({"batch": {"x": tf.ones([3, 2]), "y": tf.ones([])}}, [r"batch\['y'\]: it is new"]),
        ({"batch": {"x": tf.ones([1, 2])}, "scale": 5.0}, [r"batch\['x'\]: the shape", "scale: the Python value"]),
        ({"batch": {"x": tf.zeros([3, 2])}}, []),
    ],
)
def test_retracing_is_explained(second, reasons):
    @tf.function
    def predict(batch, scale, training=False):
        return tf.cast(batch["x"], tf.float32) * scale

    explained = trainers.explain_retracing(predict)
    first = {"batch": {"x": tf.ones([3, 2])}, "scale": 2.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained(**first)
    expectation = pytest.warns(trainers.RetracingWarning) if reasons else contextlib.nullcontext([])
    with expectation as record:
        explained(**{**first, **second})
    if reasons:
        head, *lines = str(record[0].message).splitlines()
        assert head == "predict was traced again (trace 2), since"
        assert len(lines) == len(reasons)
        for line, reason in zip(lines, reasons, strict=True):
            assert re.match(rf"  {reason}", line)
    with pytest.raises(TypeError, match=r"tf\.function"):
        trainers.explain_retracing(print)


def test_operations_are_counted_by_hand():
    """Two matrix products and their gradients, a convolution."""
    weight = tf.Variable(tf.ones([6, 5]))

    @tf.function(jit_compile=True)
    def product(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ weight) ** 2)
        return tape.gradient(loss, weight)

    forward = 2 * 4 * 6 * 5
    assert flops.count(product, tf.TensorSpec([4, 6])) == 2 * forward

    kernel = tf.Variable(tf.ones([3, 3, 2, 7]))
    convolve = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), jit_compile=True)
    assert flops.count(convolve, tf.TensorSpec([2, 8, 8, 2])) == 2 * 2 * 8 * 8 * 7 * 3 * 3 * 2
    strings = tf.function(tf.strings.length, jit_compile=True)
    assert flops.count(strings, tf.TensorSpec([2], tf.string)) is None


@pytest.mark.slow
@pytest.mark.parametrize(("peak", "shown"), [pytest.param(None, "GFLOP/s", marks=pytest.mark.slow), (1e12, "MFU")])
def test_the_console_shows_gigaflops_or_utilization(tmp_path, example, capsys, peak, shown):
    trainers.Trainer(
        *(example.Classifier(example.Mlp()), example.pipeline(), tmp_path),
        **{"runner": "xla", "log_every": 2, "peak_flops": peak},
    ).run(4)
    assert shown in capsys.readouterr().err.splitlines()[-1]
