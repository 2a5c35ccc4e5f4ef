"""The loop: what it writes, when it stops, how it goes on.

A long file: one small step, run in every way that a loop can go.
"""

import json
import re
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines, trainers
from tftoolkit.pipelines.sources.source import fetch_in_python
from tftoolkit.trainers.loop.events import EVENTS
from tftoolkit.trainers.loop.metrics_log import MetricsLog


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Line(trainers.Step):
    """Fits ``y = w * x`` and draws noise from its key; cheap to run in every way."""

    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.zeros([64]))
        self.update = trainers.Update([self.w], trainers.optimizers.Sgd(0.01, momentum=0.5))

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            noise = tf.random.stateless_normal([64], key)
            loss = tf.reduce_mean(tf.square(batch["x"] * (self.w + 0.1 * noise) - batch["y"]))
        self.update.apply([tape.gradient(loss, self.w)], [self.w])
        return {"loss": loss}


def _pipeline(poison=(), seed=0, shuffle=False):
    """By default not shuffled: to trace the permutation takes longer than to train."""
    x = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    x[list(poison)] = np.nan
    source = pipelines.sources.arrays({"x": x, "y": (3 * x).astype(np.float32)})
    pipeline = pipelines.Pipeline(source, seed=seed)
    return (pipeline.shuffle() if shuffle else pipeline).batch(4, drop_remainder=True)


def _trainer(directory, step=None, pipeline=None, **options):
    options = {"runner": "graph", "checkpoint_every": 5, "log_every": 2, **options}
    return trainers.Trainer(step or Line(), pipeline or _pipeline(), directory, **options)


def _lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_the_order_of_events(tmp_path):
    events = []
    step = Line()

    def evaluate():
        events.append("evaluating")
        return {"w": float(step.w[0])}

    def note(name):
        return name, lambda trainer: events.append(f"{name} {trainer.finished_steps}")

    hooks = [*map(note, EVENTS), (trainers.every(epochs=0.5), lambda trainer: events.append("half an epoch"))]
    trainer = _trainer(tmp_path, step, evaluate=evaluate, evaluate_every=4, hooks=hooks, log_every=3)
    summary = trainer.run(steps=7)
    assert events == [
        *["start 0", "log 3", "evaluating", "evaluate 4", "half an epoch", "checkpoint 5", "log 6"],
        *["log 7", "evaluating", "evaluate 7", "checkpoint 7", "end 7"],
    ]
    assert [(line["kind"], line["step"]) for line in _lines(tmp_path)] == [
        *[("train", 3), ("eval", 4), ("train", 6), ("train", 7), ("eval", 7)]
    ]
    assert (summary.steps, summary.already_finished) == (7, False)
    assert summary.metrics == _lines(tmp_path)[3]
    assert summary.evaluation["w"] == float(step.w[0])
    assert summary.seconds > 0


def test_a_finished_run_says_so_and_a_longer_one_goes_on(tmp_path, capsys):
    first = _trainer(tmp_path, evaluate=lambda: {"a": 1}).run(5)
    again = _trainer(tmp_path, evaluate=lambda: {"a": 2}).run(5)
    assert again.already_finished
    assert (again.metrics, again.evaluation) == (first.metrics, first.evaluation)
    assert "already finished at step 5" in capsys.readouterr().err
    assert not _trainer(tmp_path).run(6).already_finished
    assert _lines(tmp_path)[-1]["step"] == 6


@pytest.mark.parametrize("runner", [*map(slow, ("eager", "xla", "xla_chunk")), "graph"])
def test_interrupted_anywhere_the_result_is_the_same(tmp_path, runner):
    """An exception in a hook stands for any sudden end; the kills are in test_kill.py."""

    class Stop(Exception):  # noqa: N818
        pass

    def build(name):
        step = Line()
        evaluate = lambda: {"w": float(tf.reduce_sum(step.w))}  # noqa: E731
        return step, {
            "pipeline": _pipeline(shuffle=True),
            "directory": tmp_path / name,
            "runner": runner,
            "evaluate": evaluate,
            "steps_per_call": 3,
        }

    options = {"checkpoint_every": 6, "evaluate_every": 3, "log_every": 2}
    whole, arguments = build("whole")
    _trainer(step=whole, **arguments, **options).run(20)
    for stop_event, after in (("evaluate", 9), ("log", 14)):

        def hook(trainer, after=after):
            if trainer.finished_steps >= after:
                raise Stop

        step, arguments = build("parts")
        with pytest.raises(Stop):
            _trainer(step=step, hooks=[(stop_event, hook)], **arguments, **options).run(20)
    parts, arguments = build("parts")
    _trainer(step=parts, **arguments, **options).run(20)
    for name, variable in whole.named_variables().items():
        np.testing.assert_array_equal(parts.named_variables()[name].numpy(), variable.numpy(), err_msg=name)
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


class Adjusted(Line):
    """With a rate that can be changed, and a metric of the epoch."""

    def __init__(self):
        super().__init__()
        self.rate = trainers.schedules.Plateau(0.1, "loss", patience=1, factor=0.5, kind="train")
        self.update = trainers.Update([self.w], trainers.optimizers.Sgd(self.rate))
        self.mean = trainers.RunningMean()

    def __call__(self, batch, key):
        metrics = super().__call__(batch, key)
        return metrics | {"epoch_loss": self.mean.update(metrics["loss"])}


@pytest.mark.parametrize("runner", ["eager", slow("xla_chunk"), slow("graph")])
def test_t9_what_hooks_change_is_in_the_checkpoint_of_that_step(tmp_path, runner):
    def hooks(step):
        def lower(trainer):
            step.update.optimizer.learning_rate = 0.5 * float(step.rate.rate)

        # A tenth of a second may be up anywhere, but what is called then changes nothing.
        return [
            (trainers.every(steps=4), lower),
            (trainers.every(steps=3), step.rate.observe),
            (trainers.every(epochs=0.5), step.mean.reset),
            (trainers.every(seconds=0.1), lambda trainer: None),
        ]

    for name, parts in (("whole", [20]), ("parts", [4, 6, 20])):
        for steps in parts:
            step = Adjusted()
            trainer = _trainer(tmp_path / name, step, runner=runner, hooks=hooks(step), checkpoint_every=4, log_every=1)
            trainer.run(steps)
    assert float(step.rate.rate) < 0.1 * 0.5**5
    assert (tmp_path / "parts/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()
    losses, means = ([line[name] for line in _lines(tmp_path / "whole")] for name in ("loss", "epoch_loss"))
    np.testing.assert_allclose(means, [np.mean(losses[i // 5 * 5 : i + 1]) for i in range(20)], rtol=1e-6)


def test_t9_a_rate_that_is_compiled_into_the_step_says_how_to_change_it():
    with pytest.raises(AttributeError, match=r"make it Sgd\(schedules.Adjustable\(0.1\)\)"):
        Line().update.optimizer.learning_rate = 0.1


@pytest.mark.slow
def test_calls_end_where_something_is_to_be_done(tmp_path):
    events = []
    hooks = [(trainers.every(steps=11), lambda trainer: events.append(trainer.finished_steps))]
    options = {"evaluate": dict, "evaluate_every": 7, "checkpoint_every": 13, "steps_per_call": 10, "log_every": 100}
    hooks += [(event, lambda trainer: events.append(trainer.finished_steps)) for event in ("evaluate", "checkpoint")]
    _trainer(tmp_path, runner="xla_chunk", hooks=hooks, **options).run(60)
    expected = [*range(7, 61, 7), *range(13, 61, 13), *range(11, 61, 11), 60, 60]
    assert sorted(events) == sorted(expected)


def test_metrics_after_the_restored_step_are_dropped(tmp_path):
    _trainer(tmp_path).run(5)
    kept = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "step": 6, "loss": 1}\n{"kind": "train", "st')
    log = MetricsLog(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_bytes() == kept
    assert log.last["train"]["step"] == 5
    log.write(
        "train",
        6,
        {
            "loss": np.float32(0.3),
            "bad": tf.constant(np.nan),
            "n": np.int64(3),
            "half": tf.bfloat16.as_numpy_dtype(0.5),
        },
    )
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        kept + b'{"kind": "train", "step": 6, "loss": 0.3, "bad": null, "n": 3, "half": 0.5}\n'
    )


def test_an_evaluation_that_is_no_dict_is_refused(tmp_path):
    with pytest.raises(TypeError, match="evaluate must return a dict of numbers, but returned float"):
        _trainer(tmp_path, runner="eager", evaluate=lambda: 0.5).run(1)


def test_what_is_no_metric_is_refused(tmp_path):
    log = MetricsLog(tmp_path, 0)
    with pytest.raises(ValueError, match="'step'"):
        log.write("eval", 1, {"step": 3})
    for value in ("text", [1.0, 2.0], None):
        with pytest.raises(TypeError, match="'odd'"):
            log.write("eval", 1, {"odd": value})
    log.close()


def test_tensorboard_events_can_be_read(tmp_path):
    _trainer(tmp_path, evaluate=lambda: {"score": 0.25}).run(6)
    found = {}
    for path in (tmp_path / "tensorboard").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert found["eval/score", 6] == 0.25
    for line in _lines(tmp_path):
        if line["kind"] == "train":
            assert found["train/loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
    assert ("rate/steps_per_second", 6) in found


@pytest.mark.parametrize("runner", [slow("graph"), "xla_chunk"])
def test_training_stops_when_it_diverges(tmp_path, runner):
    step = Line()
    with pytest.raises(trainers.TrainingDivergedError, match=r"step 20: .*no good checkpoint"):
        _trainer(tmp_path, step, _pipeline(poison=range(40)), runner=runner).run(100)
    np.testing.assert_array_equal(step.w.numpy(), 0)


class Fragile(Line):
    """Its gradients aren't finite while the batch holds a number above 50."""

    def __call__(self, batch, key):
        bad = tf.reduce_max(batch["x"]) > 50
        return super().__call__({**batch, "y": tf.where(bad, np.nan, 1.0) * batch["y"]}, key)


def _with_bad_rows(first, count):
    x = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    x[4 * first : 4 * (first + count)] = 99  # batches of 4
    source = pipelines.sources.arrays({"x": x, "y": (3 * x).astype(np.float32)})
    return pipelines.Pipeline(source).batch(4, drop_remainder=True)


@pytest.mark.parametrize("runner", ["graph", slow("xla_chunk")])
def test_rolling_back_skips_the_batches_since_the_last_good_checkpoint(tmp_path, runner):
    """Batches 23 to 32 are bad, five in a row are too many, checkpoints come every ten steps."""
    options = {"runner": runner, "checkpoint_every": 10, "max_skipped_in_a_row": 5, "log_every": 100}
    step = Fragile()
    _trainer(tmp_path / "found", step, _with_bad_rows(23, 10), **options).run(40)
    # By hand: 20 steps, then on from batch 33: the first attempt skips 20 to 27, the second 28 to 32.
    lines = _lines(tmp_path / "found")
    assert [(line["step"], line["first_batch"], line["batches"]) for line in lines if line["kind"] == "rollback"] == [
        (21, 20, 8),
        (21, 20, 13),
    ]
    expected = Fragile()
    pipeline = _with_bad_rows(23, 10)
    _trainer(tmp_path / "expected", expected, pipeline, **options).run(20)
    runner_ = trainers.Runner(expected, pipeline.element_spec, kind="graph" if runner == "graph" else "xla")
    feed = runner_.feed(pipeline, 33)
    for number in range(20, 40):
        runner_.call(feed, number, 1)
    np.testing.assert_array_equal(step.w.numpy(), expected.w.numpy())
    assert step.update.skipped.numpy() == 0


def test_rolling_back_has_an_end(tmp_path):
    options = {"checkpoint_every": 10, "max_skipped_in_a_row": 5, "max_rollbacks": 2}
    with pytest.raises(trainers.TrainingDivergedError, match="rolled back 2 times"):
        _trainer(tmp_path, Fragile(), _with_bad_rows(13, 60), **options).run(40)
    assert trainers.Checkpointer(tmp_path / "checkpoints").steps() == [10]


def test_a_few_skipped_steps_are_shown_and_survived(tmp_path, capsys):
    step = Line()
    _trainer(tmp_path, step, _pipeline(poison=[3])).run(20)
    assert step.update.skipped.numpy() == 2  # once in each epoch of 10 batches
    assert np.all(np.isfinite(step.w.numpy()))
    assert "skipped 2" in capsys.readouterr().err


def test_another_seed_or_pipeline_is_refused(tmp_path):
    _trainer(tmp_path).run(5)
    with pytest.raises(ValueError, match=r"seed is 1.*begun with 0"):
        _trainer(tmp_path, seed=1).run(10)
    with pytest.raises(pipelines.StateMismatchError, match="seed"):
        _trainer(tmp_path, pipeline=_pipeline(seed=4)).run(10)


def test_the_seed_changes_what_the_step_draws(tmp_path):
    losses = [_trainer(tmp_path / str(seed), seed=seed).run(3).metrics["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_a_pipeline_may_begin_in_the_middle(tmp_path):
    state = _pipeline().state(7)
    results = []
    for stops in ((6,), (5, 6)):
        for stop in stops:
            pipeline, step = _pipeline(), Line()
            pipeline.restore(state)
            _trainer(tmp_path / str(len(stops)), step, pipeline).run(stop)
        results.append(step.w.numpy())
    np.testing.assert_array_equal(*results)
    assert not np.array_equal(results[0], _run_from_zero(tmp_path / "zero"))


def _run_from_zero(directory):
    step = Line()
    _trainer(directory, step).run(6)
    return step.w.numpy()


def test_two_trainers_in_one_folder(tmp_path):
    def hook(trainer):
        with pytest.raises(trainers.RunLockedError, match="in use by process"):
            _trainer(tmp_path).run(2)

    _trainer(tmp_path, hooks=[("log", hook)]).run(2)


def test_training_in_another_thread(tmp_path):
    """Only the main thread may handle signals."""
    results = []
    thread = threading.Thread(target=lambda: results.append(_trainer(tmp_path).run(3)))
    thread.start()
    thread.join()
    assert results[0].steps == 3


def test_progress_is_the_first_and_the_last_line_of_a_short_run(tmp_path, capsys):
    _trainer(tmp_path).run(6)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r".*: step 0 to 6, runner graph \(as asked\); the first call compiles", lines[0])
    assert re.fullmatch(r"step 2/6  loss \S+", lines[1])
    rates = r"\S+ steps/s  \S+ examples/s  data wait \d+%  (\S+ GFLOP/s  )?peak \d+ MiB  ETA 0:00"
    assert re.fullmatch(rf"step 6/6  loss \S+  {rates}", lines[2])
    assert len(lines) == 3


class OneAtATime:
    """Rows that take a while, however many threads ask for them."""

    element_spec = pipelines.sources.arrays({"x": np.zeros([1, 64], np.float32), "y": np.zeros([1, 64], np.float32)})
    element_spec = element_spec.element_spec

    def __init__(self, seconds):
        self._seconds = seconds
        self._lock = threading.Lock()

    def __len__(self):
        return 40

    def fetch(self, indices):
        def read(rows):
            with self._lock:
                time.sleep(self._seconds)
            return [np.ones([len(rows), 64])] * 2

        return fetch_in_python(read, indices, self.element_spec)

    def fingerprint(self):
        return {"kind": "slow"}


class Pausing(Line):
    def __init__(self, seconds):
        super().__init__()
        self._seconds = seconds

    def __call__(self, batch, key):
        if self._seconds:
            with tf.control_dependencies([tf.numpy_function(lambda: time.sleep(self._seconds), [], [])]):
                batch = {name: tf.identity(one) for name, one in batch.items()}
        return super().__call__(batch, key)


@pytest.mark.parametrize(
    ("runner", "data", "step", "least", "most"),
    [
        ("graph", 0.1, 0.0, 0.7, 1.0),
        pytest.param("xla_chunk", 0.05, 0.0, 0.7, 1.0, marks=pytest.mark.slow),
        pytest.param("graph", 0.0, 0.1, 0.0, 0.3, marks=pytest.mark.slow),
        pytest.param(
            "graph", 0.2, 0.1, 0.25, 0.75, marks=pytest.mark.slow
        ),  # half of the time: the next batch is being made during the step
    ],
    ids=["data", "data in stacks", "step", "both"],
)
@pytest.mark.slow
def test_the_share_of_time_spent_waiting_for_data(tmp_path, capsys, runner, data, step, least, most):
    # What was prepared while the step was compiled is used up before the second report, the first that tells rates.
    pipeline = pipelines.Pipeline(OneAtATime(data)).batch(4, drop_remainder=True).prefetch(1)
    options = {"runner": runner, "log_every": 8 if runner == "graph" else 64, "steps_per_call": 4}
    trainer = _trainer(tmp_path, Pausing(step), pipeline, checkpoint_every=1000, **options)
    trainer.run(2 * options["log_every"])
    shown = re.findall(r"data wait (\d+)%", capsys.readouterr().err)
    assert len(shown) == 1
    assert least <= int(shown[0]) / 100 <= most


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"log_every": 0}, ValueError, "log_every"),
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every"),
        ({"evaluate": dict, "evaluate_every": 0}, ValueError, "evaluate_every"),
        ({"evaluate_every": 5}, ValueError, "evaluate_every and best need evaluate"),
        ({"best": trainers.Best("a")}, ValueError, "evaluate_every and best need evaluate"),
        ({"log_every": trainers.every(seconds=1)}, ValueError, r"log_every=every\(seconds=1\)"),
        ({"evaluate": dict, "evaluate_every": trainers.every(seconds=1)}, ValueError, "evaluate_every"),
        ({"hooks": [print]}, TypeError, "pairs"),
        ({"hooks": [("finish", print)]}, ValueError, "start, log, evaluate, checkpoint, end"),
        ({"max_skipped_in_a_row": 0}, ValueError, "max_skipped_in_a_row"),
        ({"keep_every": 0}, ValueError, "keep_every"),
        ({"steps_per_call": 0}, ValueError, "steps_per_call"),
        ({"keep": 0}, ValueError, "keep"),
        ({"runner": "fast"}, ValueError, "eager, graph, xla, xla_chunk"),
        ({"step": tf.Module()}, TypeError, "trainers.Step"),
        ({"pipeline": tf.data.Dataset.range(3)}, TypeError, r"must be a pipelines\.Pipeline, but is _RangeDataset"),
    ],
)
def test_bad_arguments_are_named(tmp_path, options, error, named):
    with pytest.raises(error, match=named):
        _trainer(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_bad_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="steps"):
        _trainer(tmp_path).run(0)
