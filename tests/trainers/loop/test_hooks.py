"""What hooks write; sinks; schedules; breakpoints."""

import bdb
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers import hooks
from tftoolkit.trainers.loop.events import Alarm


def _events(directory):
    for path in sorted((directory / "tensorboard").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            if event.graph_def:
                yield "graph", event.step, event.graph_def
            for value in event.summary.value:
                yield value.tag, event.step, value


@pytest.mark.slow
def test_hooks_write_for_tensorboard_and_only_look(tmp_path, example):
    def train(name, **options):
        step = example.Classifier(example.Mlp())
        trainer = trainers.Trainer(step, example.pipeline(), tmp_path / name, runner="xla_chunk", **options)
        trainer.run(8)
        return example.values(step)

    pictures = np.linspace(0, 1, 2 * 4 * 4).reshape(2, 4, 4, 1)
    lines = []
    with_hooks = train(
        "hooks",
        hooks=[
            ("start", hooks.graph),
            (trainers.every(steps=4), hooks.histograms("model/*")),
            (trainers.every(steps=8), hooks.images("digits", lambda: pictures)),
            (trainers.every(steps=2), hooks.profile()),
        ],
        sinks=[lines.append],
        log_every=4,
    )
    found = {(tag, step): value for tag, step, value in _events(tmp_path / "hooks")}
    assert {("variables/model/hidden", 4), ("variables/model/hidden", 8), ("digits", 8)} <= found.keys()
    assert not any("update" in tag for tag, _ in found)
    image = tf.io.decode_png(found["digits", 8].tensor.string_val[2])
    np.testing.assert_allclose(image, np.round(pictures[0] * 255), atol=1)
    assert b"MatMul" in found["graph", 0]
    assert list((tmp_path / "hooks" / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb"))
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 4), ("train", 8)]
    for name, value in train("none", log_every=4).items():
        np.testing.assert_array_equal(with_hooks[name], value, err_msg=name)


@pytest.mark.parametrize("pictures", [np.zeros([4, 4, 1]), np.zeros([1, 4, 4, 2]), np.zeros([1, 4, 4, 1], np.int64)])
def test_what_are_no_images_is_refused(pictures):
    with pytest.raises(ValueError, match="'odd'"):
        hooks.images("odd", lambda: pictures)(None)


def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    sink = hooks.weights_and_biases(project="test", mode="offline", dir=str(tmp_path))
    sink({"kind": "train", "step": 1, "loss": 0.5})
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_weights_and_biases_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        hooks.weights_and_biases()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"steps": 1, "seconds": 1}, TypeError),
        ({"steps": 1.5}, TypeError),
        ({"steps": True}, TypeError),
        ({"steps": 0}, ValueError),
        ({"epochs": -1}, ValueError),
        ({"seconds": float("nan")}, ValueError),
    ],
)
def test_bad_schedules(arguments, error):
    with pytest.raises(error, match="every"):
        trainers.every(**arguments)


def test_when_alarms_are_due():
    def times(period, batches, first_position=0, stop=30):
        alarm, due = Alarm(period, batches), []
        alarm.set(0, first_position)
        for step in range(1, stop):
            if alarm.due(step):
                due.append(step)
                alarm.set(step, first_position + step)
        return due

    assert times(trainers.every(steps=7), None) == [7, 14, 21, 28]
    assert times(trainers.every(epochs=1), 10) == [10, 20]
    assert times(trainers.every(epochs=1), 10, first_position=4) == [6, 16, 26]
    assert times(trainers.every(epochs=0.5), 5) == [3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28]
    assert times(trainers.every(seconds=1000), None) == []
    assert len(times(trainers.every(seconds=1e-9), None)) == 29
    assert times(None, None) == []


def test_a_breakpoint_in_an_eager_step(example):
    """A debugger stops in the step and sees numbers."""

    seen = []

    class Debugger(bdb.Bdb):
        def user_line(self, frame):
            if frame.f_code.co_name == "__call__" and "loss" in frame.f_locals:
                seen.append(float(frame.f_locals["loss"].numpy()))
                self.clear_all_breaks()
            self.set_continue()

    pipeline, step = example.pipeline(), example.Classifier(example.Mlp())
    source = Path(example.__file__)
    line = next(n for n, text in enumerate(source.read_text().splitlines(), 1) if text.strip().startswith("hits ="))
    runner = trainers.Runner(step, pipeline.element_spec, kind="eager")
    feed = runner.feed(pipeline)
    debugger = Debugger()
    debugger.set_break(str(source), line)
    debugger.runcall(lambda: runner.call(feed, 0, 1))
    assert len(seen) == 1
    assert 1 < seen[0] < 4


@pytest.mark.slow
def test_pdb_in_an_eager_step(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import tensorflow as tf\nfrom tftoolkit import pipelines, trainers\n"
        "class Step(trainers.Step):\n    def __call__(self, batch, key):\n        loss = tf.reduce_sum(batch['x'])\n"
        "        breakpoint()\n        return {'loss': loss}\n"
        "pipeline = pipelines.Pipeline(pipelines.sources.arrays({'x': [1.0, 2.0]})).batch(2)\n"
        f"trainers.Trainer(Step(), pipeline, {str(tmp_path / 'run')!r}, runner='eager').run(1)\n"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONBREAKPOINT": ""}
    done = subprocess.run(
        [sys.executable, program],
        input="p loss.numpy() + 39\nc\n",
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert "42.0" in done.stdout
    assert done.returncode == 0, done.stderr


def test_best_looks_at_the_evaluations_only():
    def evaluations(*values):
        return [{"kind": "eval", "step": n, "a": value} for n, value in enumerate(values)]

    best = trainers.Best("a", patience=2)
    assert best.of(evaluations(1, 3, None, 3))["step"] == 1
    assert best.of(evaluations(None)) is None
    assert [best.exhausted(evaluations(*[1, 3, 2, 3, 4][:n])) for n in range(5)] == [False, False, False, False, True]
    falling = trainers.Best("a", mode="min", patience=2, min_delta=0.5)
    assert falling.of(evaluations(1, 3, 0.9))["step"] == 2
    assert falling.exhausted(evaluations(1, 0.9, 0.8))
    assert not falling.exhausted(evaluations(1, 0.9, 0.4))
    with pytest.raises(ValueError, match=r"metric='b'.*\['a'\]"):
        trainers.Best("b").of(evaluations(1))
    for bad in ({"mode": "most"}, {"patience": 0}, {"min_delta": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            trainers.Best("a", **bad)


def test_early_stopping_and_the_best_checkpoint(tmp_path, example):
    scores = {10: 0.5, 20: 0.9, 30: 0.4, 40: 0.3}
    step = example.Classifier(example.Mlp())
    trainer = None

    def evaluate():
        return {"score": scores[trainer.finished_steps]}

    options = {"evaluate": evaluate, "evaluate_every": 10, "best": trainers.Best("score", patience=2), "keep": 1}
    weights = {}
    options["hooks"] = [(trainers.every(steps=10), lambda t: weights.update({t.finished_steps: example.values(step)}))]
    trainer = trainers.Trainer(step, example.pipeline(), tmp_path, runner="graph", **options)
    summary = trainer.run(1000)
    assert summary.steps == 40
    assert summary.best["step"] == 20
    assert trainers.Checkpointer(tmp_path / "checkpoints").steps() == [20, 40]
    assert trainer.run(1000).already_finished
    assert trainer.load_best() == 20
    for name, value in example.values(step).items():
        np.testing.assert_array_equal(value, weights[20][name], err_msg=name)
