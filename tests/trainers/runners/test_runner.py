"""The four ways to run a step give the results they promise."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.step import step_key

KINDS = ["eager", "graph", "xla", "xla_chunk"]
SLOW = pytest.mark.slow


def _calls(runner, pipeline, start, stop):
    feed, calls = runner.feed(pipeline, start), []
    while start < stop:
        calls.append(runner.call(feed, start, stop - start))
        start += calls[-1].steps
    return calls


class _Rows:
    """A pipeline of ready-made batches that come in stacks, too; the last stack is filled up with zeros."""

    def __init__(self, rows, size=0):
        self.rows = np.array(rows, np.float32)
        self.data = tf.data.Dataset.from_tensor_slices({"x": self.rows})
        if size:
            filled = np.pad(self.rows, [(0, -len(rows) % size), (0, 0)])
            self.data = tf.data.Dataset.from_tensor_slices({"x": filled}).batch(size)
        self.element_spec = self.data.element_spec

    def dataset(self, start):
        return self.data.skip(start)

    def stack(self, size):
        return _Rows(self.rows, size)


def _run(example, step, kind, start=0, stop=10, size=4, seed=0):
    """Run the step; all its variables at the end and all its metrics, per step."""
    pipeline = example.pipeline()
    runner = trainers.Runner(step, pipeline.element_spec, kind=kind, steps_per_call=size, seed=seed)
    calls = _calls(runner, pipeline, start, stop)
    numbers = [number for call in calls for number in range(call.first, call.first + call.steps)]
    assert numbers == list(range(start, stop))
    names = calls[0].metrics.keys()
    metrics = {name: np.concatenate([call.values()[name] for call in calls]) for name in names}
    return example.values(step), metrics, [call.steps for call in calls]


def _assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("model", ["Mlp", *(pytest.param(model, marks=SLOW) for model in ("Cnn", "Attention"))])
@pytest.mark.slow
def test_a_chunk_equals_single_compiled_steps_bit_for_bit(example, model):
    single = _run(example, example.Classifier(getattr(example, model)()), "xla", stop=24)
    step = example.Classifier(getattr(example, model)())
    chunks = _run(example, step, "xla_chunk", stop=24, size=5)
    assert max(chunks[2]) > 1  # calls grow
    _assert_same_bits(chunks[0], single[0])
    _assert_same_bits(chunks[1], single[1])
    assert len(set(chunks[1]["loss"])) == 24  # dropout and data do differ from step to step
    if model == "Mlp":
        assert step.python_calls == 2  # traced for one step, and for many


@SLOW
def test_where_a_chunk_begins_does_not_matter(example):
    whole = example.Classifier(example.Mlp())
    halves = example.Classifier(example.Mlp())
    _run(example, whole, "xla_chunk", 0, 12)
    _run(example, halves, "xla_chunk", 0, 7)
    _run(example, halves, "xla_chunk", 7, 12)
    _assert_same_bits(example.values(halves), example.values(whole))


def test_a_second_run_repeats_the_first_bit_for_bit_and_the_seed_matters(example):
    results = [
        _run(example, example.Classifier(example.Mlp()), "eager", stop=4, seed=seed)[1]["loss"] for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_all_kinds_agree_up_to_rounding(example):
    """Without dropout: XLA draws other random numbers. ``xla_chunk`` is ``xla`` bit for bit, as another test shows."""
    kinds = ("eager", "graph", "xla")
    losses = {kind: _run(example, example.Classifier(example.Mlp(dropout=0.0)), kind)[1]["loss"] for kind in kinds}
    for kind in kinds:
        np.testing.assert_allclose(losses[kind], losses["eager"], rtol=1e-5)


class _Square(trainers.Step):
    def __init__(self, fused=False):
        super().__init__()
        self.weight = tf.Variable([1.0, 2.0])
        self.update = trainers.Update([self.weight], trainers.optimizers.AdamW(0.1, fused=fused), clip_norm=1.0)

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.weight * batch["x"]))
        return {"loss": loss, **self.update.apply(tape.gradient(loss, [self.weight]), [self.weight])}


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        *(("eager", True), ("graph", False), ("xla", False), ("xla_chunk", True)),
        *(pytest.param(*pair, marks=SLOW) for pair in (("eager", False), ("graph", True))),
        *(pytest.param(*pair, marks=SLOW) for pair in (("xla", True), ("xla_chunk", False))),
    ],
)
def test_a_poisoned_batch_is_as_if_it_had_not_been(kind, fused):
    good = _Rows([[1, 2], [3, 1], [2, 2], [1, 1], [0, 1]])
    poisoned = _Rows([[1, 2], [3, 1], [np.nan, 1], [2, 2], [1, 1], [1, np.inf], [0, 1]])
    step = _Square(fused)
    before = {name: variable.numpy() for name, variable in step.named_variables().items()}
    runner = trainers.Runner(step, good.element_spec, kind=kind, steps_per_call=3)
    _calls(runner, good, 0, 5)
    clean = {name: variable.numpy() for name, variable in step.named_variables().items()}
    assert not np.array_equal(clean["weight"], before["weight"])
    for name, variable in step.named_variables().items():
        variable.assign(before[name])
    skipped = np.concatenate([call.values()["skipped"] for call in _calls(runner, poisoned, 0, 7)])
    np.testing.assert_array_equal(skipped, [0, 0, 1, 0, 0, 1, 0])
    for name, variable in step.named_variables().items():
        if "skipped" not in name:
            np.testing.assert_array_equal(variable.numpy(), clean[name], err_msg=name)
    assert step.update.skipped.numpy() == 2


def test_keys_depend_on_seed_and_step_only():
    keys = [tuple(step_key(seed, tf.constant(n, tf.int64)).numpy()) for seed in (0, 1, 2**70) for n in range(20)]
    assert len(set(keys)) == 60
    assert step_key(0, tf.constant(3)).dtype == tf.int32


def test_auto_chooses_and_says_why(example):
    mlp = trainers.Runner(example.Classifier(example.Mlp()), example.pipeline().element_spec)
    assert (mlp.kind, mlp.reason, mlp.steps_per_call) == ("xla_chunk", "all batches have one static shape", 100)
    cnn = trainers.Runner(example.Classifier(example.Cnn()), example.pipeline().element_spec)
    assert cnn.kind == "graph"
    assert "convolutions" in cnn.reason
    varying = trainers.Runner(example.Classifier(example.Mlp()), example.pipeline(drop_remainder=False).element_spec)
    assert (varying.kind, varying.steps_per_call) == ("graph", 1)
    assert "drop_remainder=True" in varying.reason


@pytest.mark.parametrize("kind", ["xla", "xla_chunk"])
def test_varying_batches_are_refused_by_compiled_kinds(example, kind):
    spec = example.pipeline(drop_remainder=False).element_spec
    with pytest.raises(ValueError, match="drop_remainder=True"):
        trainers.Runner(example.Classifier(example.Mlp()), spec, kind=kind)


@pytest.mark.parametrize("kind", ["eager", "graph"])
def test_a_smaller_last_batch_is_fine_elsewhere(example, kind):
    pipeline = example.pipeline(drop_remainder=False)
    step = example.Classifier(example.Mlp())
    runner = trainers.Runner(step, pipeline.element_spec, kind=kind)
    start = pipeline.batches_per_epoch - 2
    assert len(_calls(runner, pipeline, start, start + 4)) == 4
    assert step.python_calls == (4 if kind == "eager" else 2)


def test_stacks_take_no_more_than_256_mebibytes():
    class Sum(trainers.Step):
        def __call__(self, batch, key):
            return {"sum": tf.reduce_sum(batch["x"])}

    for megabytes, steps in ((64, 4), (65, 3), (300, 1), (1, 20)):
        spec = {"x": tf.TensorSpec([megabytes << 18], tf.float32)}
        assert trainers.Runner(Sum(), spec, kind="xla_chunk", steps_per_call=20).steps_per_call == steps


def test_strings_can_not_be_compiled_for():
    spec = {"text": tf.TensorSpec([4], tf.string)}
    with pytest.raises(ValueError, match="'text' holds string"):
        trainers.Runner(_Square(), spec, kind="xla")


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_ends_early_is_an_error(kind):
    data = _Rows([[1, 2], [3, 4], [5, 6], [7, 8]])
    runner = trainers.Runner(_Square(), data.element_spec, kind=kind, steps_per_call=2)
    with pytest.raises(ValueError, match="ended before its batch 4"):
        _calls(runner, data, 0, 7)


class _Odd(trainers.Step):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def __call__(self, batch, key):
        return self.call(batch, key)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda batch, key: batch["x"], TypeError, "dict of scalar"),
        (lambda batch, key: batch, TypeError, "'x' has shape"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_returns_scalars(kind, call, error, text):
    data = _Rows([[1.0, 2.0]])
    with pytest.raises(error, match=text):
        _calls(trainers.Runner(_Odd(call), data.element_spec, kind=kind, steps_per_call=1), data, 0, 1)


def test_unknown_kind_and_bad_size():
    with pytest.raises(ValueError, match="eager, graph, xla, xla_chunk"):
        trainers.Runner(_Square(), {}, kind="jit")
    with pytest.raises(ValueError, match="steps_per_call"):
        trainers.Runner(_Square(), {}, steps_per_call=0)


def test_variables_that_no_checkpoint_would_hold_are_refused():
    outside = tf.Variable(1.0, name="outside")
    step = _Odd(lambda batch, key: {"loss": tf.reduce_sum(batch["x"]) * outside})
    with pytest.raises(ValueError, match="outside"):
        trainers.Runner(step, {"x": tf.TensorSpec([2], tf.float32)}, kind="graph")


@pytest.mark.parametrize(
    ("draw", "warns"),
    [
        (lambda x, key: tf.nn.dropout(x, 0.5), True),
        (lambda x, key: tf.random.shuffle(x), True),
        (lambda x, key: tf.nn.experimental.stateless_dropout(x, 0.5, seed=key), False),
    ],
)
def test_stateful_random_operations_are_warned_of(draw, warns):
    step = _Odd(lambda batch, key: {"loss": tf.reduce_sum(draw(batch["x"], key))})
    expectation = pytest.warns(UserWarning, match="stateful random") if warns else contextlib.nullcontext()
    with expectation:
        trainers.Runner(step, {"x": tf.TensorSpec([2], tf.float32)}, kind="graph")
