"""The chief's part of training with parameter servers, its workers played by the test: who gets which batches, when.

With real workers: test_asynchronous.py.
"""

import json

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines, trainers
from tftoolkit.trainers.runners import asynchronous
from tftoolkit.trainers.runners.asynchronous import AsynchronousRunner

BATCH, BATCHES = 4, 25


class Coordinator:
    """Runs what is scheduled at once. The metrics of the closures numbered ``lost`` die with their worker."""

    def __init__(self, strategy):
        self.sizes, self.lost = [], ()

    def schedule(self, closure, args):
        self.sizes.append(len(next(iter(args[0].values()))))
        return Fetched(closure(*args), lost=len(self.sizes) in self.lost)

    def join(self):
        pass


class Fetched:
    def __init__(self, values, lost):
        self.values, self.lost = values, lost

    def fetch(self):
        if self.lost:
            raise tf.errors.UnavailableError(None, None, "the worker is gone")
        return {name: value.numpy() for name, value in self.values.items()}


class Counting(trainers.Step):
    """Counts how often it has seen each row; its metric ``noise`` depends on the step's key."""

    def __init__(self, optimizer=None):
        super().__init__()
        self.weight = tf.Variable(1.0)
        self.update = trainers.Update([self.weight], optimizer or trainers.optimizers.Sgd(0.5))
        self.seen = tf.Variable(tf.zeros([BATCH * BATCHES], tf.int32), trainable=False)

    def __call__(self, batch, key):
        rows = batch["row"]
        self.seen.assign_add(tf.scatter_nd(rows[:, None], tf.ones_like(rows), self.seen.shape))
        self.update.apply([tf.reduce_mean(tf.cast(rows, tf.float32)) / 100])
        return {"weight": self.weight.read_value(), "noise": tf.random.stateless_uniform([], key)}


def _pipeline(drop_remainder=True):
    rows = np.arange(BATCH * BATCHES, dtype=np.int32)
    return pipelines.Pipeline(pipelines.sources.arrays({"row": rows})).batch(BATCH, drop_remainder=drop_remainder)


def _runner(step, pipeline=None, **options):
    spec = (pipeline or _pipeline()).element_spec
    return AsynchronousRunner(step, spec, tf.distribute.get_strategy(), **options)


def _train(runner, pipeline, stop):
    feed, step, calls = runner.feed(pipeline), 0, []
    while step < stop:
        calls.append(runner.call(feed, step, stop - step))
        assert calls[-1].first == step
        step += calls[-1].steps
    return calls, {name: np.concatenate([call.values()[name] for call in calls]) for name in calls[0].metrics}


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "ps": ["d:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "chief", "index": 0}}))
    monkeypatch.setattr(tf.distribute.coordinator, "ClusterCoordinator", Coordinator)


@pytest.mark.parametrize("drop_remainder", [True, False], ids=["stacks", "varying shapes"])
def test_workers_get_each_batch_once_and_in_order(drop_remainder):
    """So, as this one works through them in order, it all is what one process does."""
    pipeline = _pipeline(drop_remainder)
    step, alone = Counting(), Counting()
    runner = _runner(step, pipeline, steps_per_call=16, seed=3)
    assert (runner.workers, runner.kind, runner.reason) == (2, "graph", "asynchronous, 2 workers")
    assert runner.graph is not None
    calls, found = _train(runner, pipeline, 40)
    _, expected = _train(trainers.Runner(alone, pipeline.element_spec, kind="graph", seed=3), pipeline, 40)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    np.testing.assert_array_equal(step.seen, alone.seen)
    assert set(step.seen.numpy()) == {1, 2}  # 40 of 25 batches
    lengths = [call.steps for call in calls]
    assert lengths[0] == 2  # a batch for each worker; then twice as many while a call takes less than half a second
    assert 2 < max(lengths) <= 16
    if drop_remainder:
        assert max(runner._coordinator.sizes) == 2  # of 16 batches each of 2 workers gets 4 closures


def test_calls_become_shorter_when_they_take_too_long(monkeypatch):
    runner = _runner(Counting(), steps_per_call=16)
    clock = iter(range(0, 1000, 5))  # five seconds pass in each call
    monkeypatch.setattr(asynchronous.time, "perf_counter", lambda: next(clock))
    runner._length = 16
    calls, _ = _train(runner, _pipeline(), 32)
    assert [call.steps for call in calls][:3] == [16, 8, 4]


def test_a_closure_whose_worker_died_is_run_again_and_no_other():
    step = Counting()
    runner = _runner(step, steps_per_call=2)
    runner._coordinator.lost = (3,)
    _, metrics = _train(runner, _pipeline(), 6)
    assert runner._coordinator.sizes == [1] * 7
    assert len(metrics["weight"]) == 6
    assert [step.seen.numpy()[BATCH * batch] for batch in range(6)] == [1, 1, 2, 1, 1, 1]
    runner._coordinator.lost = range(100)
    with pytest.raises(tf.errors.UnavailableError):
        _train(runner, _pipeline(), 2)
    assert runner._coordinator.sizes == [1] * (7 + 5 * 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kind": "fast"}, "must be one of auto, eager, graph, xla, xla_chunk, but is 'fast'"),
        ({"kind": "eager"}, "runner 'eager' can't run on other machines"),
        ({"kind": "xla"}, "runner 'xla': XLA programs can't reach variables on parameter servers"),
        ({"kind": "xla_chunk"}, "runner 'xla_chunk': XLA programs"),
        ({"steps_per_call": 0}, "steps_per_call must be at least 1, but is 0"),
    ],
)
def test_other_runners_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        _runner(Counting(), **options)


def test_what_workers_would_do_to_each_other_is_refused(monkeypatch):
    step, strategy = Counting(), tf.distribute.get_strategy()
    with pytest.raises(TypeError, match=r"'words' is a RaggedTensorSpec.*pad it"):
        AsynchronousRunner(step, {"words": tf.RaggedTensorSpec([None, None])}, strategy)
    keras = pytest.importorskip("keras")
    with pytest.raises(TypeError, match="an optimizer of Keras overwrites what other workers wrote"):
        _runner(Counting(keras.optimizers.SGD(0.1)))
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    with pytest.raises(ValueError, match="each worker has 2 GPUs, but can use one"):
        _runner(step)
