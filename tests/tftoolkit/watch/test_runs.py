"""``tftoolkit runs``: what it makes of run folders, tidy and wild ones."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf
from run_folders import evaluated, make, train

from tftoolkit import cli, pipelines, trainers
from tftoolkit.trainers.checkpoints.run_lock import RunLock, is_locked
from tftoolkit.watch import metrics_file, runs

RECIPE = {"recipe": "digits", "job": "image_classification", "steps": 100, "at_least": {"accuracy": 0.9}}


def listed(folder):
    return [runs.look(name, place) for name, place in runs.find(folder).items()]


def test_the_table(tmp_path, capsys):
    lines = [train(10, loss=2.0), evaluated(10, accuracy=0.5), evaluated(20, accuracy=0.75), train(20, loss=1.25)]
    make(
        tmp_path / "runs/digits",
        [*lines, evaluated(30, accuracy=0.625)],
        RECIPE,
        {"state": "interrupted", "steps": 100},
    )
    make(
        tmp_path / "runs/own/first",
        [train(7, loss=0.5)],
        status={"state": "failed", "steps": 9, "error": "ValueError: no\x1b[2J"},
    )
    assert cli.main(["runs", str(tmp_path / "runs")]) == 0
    head, digits, own, empty, note = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "recipe", "state", "step", "of", "loss", "best", "changed", "ETA"]
    assert digits.split()[:8] == ["digits", "digits", "interrupted", "30", "100", "1.25", "accuracy", "0.75"]
    assert own.split()[:7] == ["own/first", "–", "failed", "7", "9", "0.5", "–"]
    assert (empty, note) == ("", "own/first: ValueError: no?[2J")
    assert len({line.index(word) for line, word in ((head, "state"), (digits, "interr"), (own, "failed"))}) == 1


def test_json_is_for_programs(tmp_path, capsys):
    make(
        tmp_path / "runs/a",
        [b'{"kind": "train", "step": 3, "loss": NaN}\n', b'{"kind": "eval", "step": 3, "loss": Infinity}\n'],
    )
    assert cli.main(["runs", str(tmp_path / "runs"), "--json"]) == 0
    text = capsys.readouterr().out
    assert "NaN" not in text
    (found,) = json.loads(text)
    assert found.keys() == {field.name for field in dataclasses.fields(runs.Run)}
    assert (found["name"], found["step"], found["loss"], found["best"]) == ("a", 3, None, None)


def test_no_runs_and_no_folder(tmp_path, capsys):
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert f"no runs below {tmp_path}" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path / "none")]) == 1
    assert "FileNotFoundError: there is no folder " in capsys.readouterr().err


def test_states(tmp_path):
    lines = [train(50, loss=1.0)]
    now = {"state": "running", "steps": 100, "from_step": 0, "since": time.time() - 100}
    folder = make(tmp_path / "runs/a", lines, status=now)
    with RunLock(folder / "checkpoints"):
        assert is_locked(folder / "checkpoints")
        run = runs.look("a", folder)
        assert run.state == "running"
        assert run.eta == pytest.approx(100, abs=5)  # half of it took 100 s
    assert runs.look("a", folder).state == "died"
    for state in ("finished", "interrupted", "diverged"):
        (folder / "status.json").write_text(json.dumps({"state": state}))
        assert runs.look("a", folder).state == state
    (folder / "status.json").unlink()  # an older version wrote none
    assert runs.look("a", folder).state == "unknown"
    (folder / "config.json").write_text(json.dumps({"job": "tabular", "steps": 50}))
    run = runs.look("a", folder)
    assert (run.state, run.recipe, run.eta) == ("finished", "tabular", None)


def test_a_look_refuses_nobody_the_lock(tmp_path):
    """Who trains waits for who only looks."""
    descriptor = os.open(tmp_path / ".lock", os.O_RDONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    threading.Timer(0.05, os.close, [descriptor]).start()
    with RunLock(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


class Line(trainers.Step):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(0.0)
        self.update = trainers.Update([self.w], trainers.optimizers.Sgd(0.1))

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(batch["x"] * self.w - 1.0))
        self.update.apply([tape.gradient(loss, self.w)], [self.w])
        return {"loss": loss}


def trainer(folder, x=1.0, **options):
    pipeline = pipelines.Pipeline(pipelines.sources.arrays({"x": [x] * 8})).batch(4)
    return trainers.Trainer(Line(), pipeline, folder, runner="eager", log_every=1, **options)


def test_what_a_trainer_leaves(tmp_path):
    seen = []

    def look(_):
        seen.append(runs.look("a", tmp_path / "a"))

    def stop(_):
        raise OSError("disk on fire")

    best = {"evaluate": lambda: {"score": 2.0}, "best": trainers.Best("score", mode="max")}
    trainer(tmp_path / "a", hooks=[("log", look)], **best).run(2)
    assert [(run.state, run.step, run.steps) for run in seen] == [("running", 1, 2), ("running", 2, 2)]
    after = runs.look("a", tmp_path / "a")
    assert (after.state, after.best, after.metric) == ("finished", 2.0, "score")
    with pytest.raises(OSError, match="fire"):
        trainer(tmp_path / "b", hooks=[("log", stop)]).run(2)
    failed = runs.look("b", tmp_path / "b")
    assert (failed.state, failed.note) == ("failed", "OSError: disk on fire")
    with pytest.raises(trainers.TrainingDivergedError):
        trainer(tmp_path / "c", float("nan"), max_skipped_in_a_row=1).run(2)
    assert runs.look("c", tmp_path / "c").state == "diverged"


WILD = {
    "half a line": [train(1, loss=3.0), b'{"kind": "train", "st'],
    "no lines": [],
    "not JSON": [b"\x00\xff\n", b"[]\n", b"3\n", b'{"kind": "train"}\n', b'{"kind": 1, "step": 2}\n', b"{" * 9999],
    "deep": [b"[" * 100_000 + b"\n"],
    "large number": [b'{"kind": "train", "step": 1, "loss": 1' + b"0" * 400 + b"}\n"],
    "words": [train(1, loss="low", name=[1], flag=True)],
}


@pytest.mark.parametrize("kind", WILD)
def test_wild_metrics(tmp_path, kind):
    folder = make(tmp_path / "runs/wild", WILD[kind])
    run = runs.look("wild", folder)
    assert run.step == (1 if kind in ("half a line", "large number", "words") else None)
    assert run.loss == (3.0 if kind == "half a line" else None)
    part = metrics_file.part(folder / "metrics.jsonl")
    json.dumps(dataclasses.asdict(part), allow_nan=False)
    assert len(part.lines) == (run.step is not None)


def test_wild_folders(tmp_path, monkeypatch):
    here = tmp_path / "runs"
    folder = make(tmp_path / "runs/real", [train(1, loss=1.0)])
    (here / "circle").symlink_to(here)
    (here / "self").symlink_to(here / "self")
    (here / "again").symlink_to(folder)
    (here / "broken").symlink_to(here / "gone")
    (here / "line\nbreak").mkdir()
    os.mkfifo(here / "line\nbreak" / "metrics.jsonl")
    (here / "config").mkdir()
    (here / "config" / "config.json").write_text("[1]")
    make(tmp_path / "runs/folder", config={"job": 3, "steps": "many", "at_least": []}, status=[1])
    (here / "folder/metrics.jsonl").unlink()
    (here / "folder/metrics.jsonl").mkdir()
    found = {run.name: run for run in listed(here)}
    assert sorted(found) == ["again", "folder", "line\nbreak"]  # a folder is listed once
    assert found["folder"].note == found["line\nbreak"].note == "metrics.jsonl: is not a file"

    scandir, opened = os.scandir, metrics_file._opened
    denied = PermissionError(13, "Permission denied")

    def refuse(path, function, *names):
        if any(str(path).endswith(name) for name in names):
            raise denied
        return function(path)

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path, scandir, "folder"))
    monkeypatch.setattr(metrics_file, "_opened", lambda path: refuse(path, opened, "again/metrics.jsonl"))
    found = {run.name: run for run in listed(here)}
    assert sorted(found) == ["again", "line\nbreak"]
    assert found["again"].note == "metrics.jsonl: Permission denied"


def test_a_run_in_a_run_and_the_folder_itself(tmp_path):
    folder = make(tmp_path / "runs/outer", [train(1)])
    make(tmp_path / "runs/outer/inner", [train(1)])
    make(tmp_path / "runs/outer/checkpoints/none", [train(1)])
    assert list(runs.find(tmp_path / "runs")) == ["outer", "outer/inner"]
    assert list(runs.find(folder)) == ["outer", "inner"]


def test_hundreds_of_runs(tmp_path, capsys):
    for number in range(300):
        make(tmp_path / f"runs/run{number:03}", [train(step, loss=1.0) for step in range(3)])
    assert cli.main(["runs", str(tmp_path / "runs")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 301


@pytest.mark.slow
def test_a_million_lines(tmp_path):
    rows = [json.dumps(train(step, loss=step / 7)) for step in range(1_000_000)]
    rows[500_000] = json.dumps(evaluated(500_000, loss=0.25))
    folder = make(tmp_path / "runs/large", [("\n".join(rows) + "\n").encode()])
    begun = time.process_time()
    run = runs.look("large", folder)
    assert (run.step, run.best) == (999_999, 0.25)
    part = metrics_file.part(folder / "metrics.jsonl")
    assert part.every > 200
    assert 3000 < len(part.lines) < 5000
    assert evaluated(500_000, loss=0.25) in part.lines  # none of these is left out
    assert time.process_time() - begun < 10  # it is 1


def test_parts_follow_each_other(tmp_path):
    path = make(tmp_path / "runs/a", [train(1, loss=1.0)]) / "metrics.jsonl"
    first = metrics_file.part(path)
    assert (len(first.lines), first.again) == (1, False)
    with path.open("ab") as file:
        file.write(b'{"kind": "train", "step": 2}\n{"kind"')
    second = metrics_file.part(path, first.offset, first.mark)
    assert [line["step"] for line in second.lines] == [2]
    with path.open("ab") as file:
        file.write(b': "eval", "step": 2}\n')
    third = metrics_file.part(path, second.offset, second.mark)
    assert third.lines == [evaluated(2)]
    assert metrics_file.part(path, third.offset, third.mark).lines == []
    lines = [train(1), {"kind": "rollback", "step": 2}, *[train(2)] * 9]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    anew = metrics_file.part(path, third.offset, third.mark)
    assert anew.again
    assert len(anew.lines) == 11


def test_neither_needs_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = None; from tftoolkit import cli; sys.exit(cli.main(['runs', '.']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
