"""A skipped step changes nothing: not what the step assigns itself, in any runner, either Keras, or on replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tftoolkit import pipelines, trainers

RUNNERS = ("eager", "graph", "xla", "xla_chunk")
BAD = 9  # a row of the second batch


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Own(trainers.Step):
    """Its own states: a counter, a carried state, a running mean, a flag; and one that it never assigns."""

    def __init__(self, accumulate=1, updates=1):
        super().__init__()
        self.w = [tf.Variable(tf.ones([3])) for _ in range(updates)]
        self.updates = [
            trainers.Update([w], trainers.optimizers.Sgd(0.01, momentum=0.9), accumulate=accumulate) for w in self.w
        ]
        self.steps = tf.Variable(0)
        self.carried = tf.Variable(tf.zeros([8, 3]))
        self.mean = tf.Variable(tf.zeros([3], tf.float64))
        self.flag = tf.Variable(False)
        self.fixed = tf.Variable([np.nan, 1.0])
        self.table = tf.Variable(tf.zeros([32, 3]))

    def __call__(self, batch, key):
        metrics = {}
        for w, update in zip(self.w, self.updates, strict=True):

            def losses(part, key, w=w):
                self.mean.assign(0.9 * self.mean + tf.reduce_mean(tf.cast(part["x"], tf.float64), 0))
                return tf.reduce_mean(tf.square(w * part["x"] + self.fixed[1]), -1)

            gradients = update.gradients(losses, batch, key)
            metrics |= gradients.metrics() | update.apply(gradients)
        self.steps.assign_add(1)
        self.carried.assign(batch["x"] + self.carried)
        self.flag.assign(tf.reduce_any(tf.math.is_nan(batch["x"])))
        self.table.scatter_nd_update(batch["i"][:, tf.newaxis], batch["x"])
        return metrics


class Net(trainers.Step):
    def __init__(self, package):
        super().__init__()
        first = keras.Input([3]) if package is keras else package.layers.InputLayer([3])
        # That of tf_keras draws from TensorFlow's own generator, which no step can take back.
        dropout = [package.layers.Dropout(0.3, seed=1)] if package is keras else []
        layers = package.layers.BatchNormalization(), *dropout, package.layers.Dense(1)
        self.model = package.Sequential([first, *layers])
        self.update = trainers.Update(self.model, trainers.optimizers.Sgd(0.01))

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.model(batch["x"], training=True) ** 2)
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def _batches(bad=BAD):
    x = np.random.default_rng(0).normal(size=[32, 3]).astype("float32")
    if bad is not None:
        x[bad] = np.nan
    arrays = {"x": x, "i": np.arange(32, dtype=np.int32)}
    return pipelines.Pipeline(pipelines.sources.arrays(arrays)).batch(8, drop_remainder=True)


def _values(step):
    return {name: variable.numpy() for name, variable in step.named_variables().items()}


def _after_two_steps_is_as_after_one(make, tmp_path, runner):
    found = []
    for steps in (1, 2):
        step = make()
        trainers.Trainer(step, _batches(), tmp_path / str(steps), runner=runner).run(steps)
        found.append(_values(step))
    one, two = found
    counters = {name for name in one if "skipped" in name}
    assert sum(int(two[name]) for name in counters) > 0
    for name in one.keys() - counters:
        np.testing.assert_array_equal(two[name], one[name], err_msg=name)


@pytest.mark.parametrize(("runner", "accumulate"), [
    ("eager", 1), ("xla_chunk", 2), *(slow(runner, n) for runner in RUNNERS for n in (1, 2)),
])  # fmt: skip
def test_t1_a_skipped_step_takes_back_all_that_the_step_assigned(tmp_path, runner, accumulate):
    _after_two_steps_is_as_after_one(lambda: Own(accumulate), tmp_path, runner)


@pytest.mark.parametrize(("package", "runner"), [
    (keras, "graph"), *(slow(k, r) for k in (keras, tf_keras) for r in RUNNERS),
])  # fmt: skip
def test_t1_normalization_and_dropout_of_keras(tmp_path, package, runner):
    model = None

    def make():
        nonlocal model
        package.utils.set_random_seed(0)
        step = Net(package)
        model = step.model
        return step

    _after_two_steps_is_as_after_one(make, tmp_path, runner)
    assert np.isfinite(model(np.ones([2, 3], np.float32))).all()


def test_t1_one_of_two_updates_skipped(tmp_path):
    class Two(Own):
        def __call__(self, batch, key):
            with tf.GradientTape(persistent=True) as tape:
                good, bad = tf.reduce_sum(self.w[0]), tf.reduce_mean(self.w[1] * batch["x"])
            self.updates[0].apply(tape.gradient(good, [self.w[0]]))
            self.updates[1].apply(tape.gradient(bad, [self.w[1]]))
            self.steps.assign_add(1)
            return {"good": good}

    step = Two(updates=2)
    trainers.Trainer(step, _batches(), tmp_path, runner="graph").run(2)
    assert int(step.steps) == 1
    assert [int(update.skipped) for update in step.updates] == [0, 1]
    assert int(step.updates[0].optimizer.iterations) == 2


@pytest.mark.slow
def test_t1_a_shape_that_is_not_known(tmp_path):
    class Ragged(Own):
        def __init__(self):
            super().__init__()
            self.last = tf.Variable([0.0], shape=[None])

        def __call__(self, batch, key):
            self.last.assign(batch["x"][:, 0])
            return super().__call__(batch, key)

    _after_two_steps_is_as_after_one(Ragged, tmp_path, "graph")


def test_t1_without_a_skip_nothing_is_taken_back(tmp_path):
    step = Own()
    trainers.Trainer(step, _batches(bad=None), tmp_path, runner="xla_chunk").run(4)
    assert int(step.steps) == 4
    assert np.isfinite(step.carried).all()
    assert np.all(step.table.numpy()[31] != 0)


def test_t1_a_large_variable_that_is_only_read_is_not_copied(tmp_path):
    """Nothing of the step's graph assigns to it."""
    step = Own()
    runner = trainers.Runner(step, _batches().element_spec, kind="graph")
    handle = runner.graph.capture(step.fixed.handle)
    assert {operation.type for operation in handle.consumers()} == {"ReadVariableOp"}


@pytest.mark.parametrize("runner", ["eager", "graph"])
def test_t1_a_checkpoint_with_a_state_that_is_not_finite_is_no_good_one(tmp_path, runner):
    """What the step poisons without being skipped: seen when it is saved, and never gone back to."""

    class Poisoned(Own):
        def __call__(self, batch, key):
            metrics = super().__call__({**batch, "x": tf.where(tf.math.is_nan(batch["x"]), 0.0, batch["x"])}, key)
            self.mean.assign_add(tf.cast(tf.reduce_mean(batch["x"], 0), tf.float64))
            return metrics

    step = Poisoned()
    trainer = trainers.Trainer(step, _batches(), tmp_path, runner=runner, checkpoint_every=1)
    with pytest.warns(UserWarning, match=r"step 2: .*\['mean'\]"):
        trainer.run(2)
    assert trainer._recovery.protected_steps == (1,)
