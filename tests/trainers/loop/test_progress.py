"""What training shows: on a terminal one line that rewrites itself, in a file a line per interval."""

import logging
import re
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import pipelines, trainers
from tftoolkit.trainers import console
from tftoolkit.trainers.loop.progress import Progress


def _progress(stop=100):
    return Progress(stop, 32, lambda: 10**9)


def _report(progress, step):
    time.sleep(0.001)
    metrics = {"loss": 1 / step, "learning_rate": 0.001}
    return progress.report(step, metrics, 0, 0.0, {"kind": "eval", "step": 1, "accuracy": 0.5, "loss": 0.3})


@pytest.mark.parametrize("columns", [200, 80, 30])
def test_one_line_rewrites_itself_and_never_wraps(terminal, columns):
    shown = terminal(columns)
    progress = _progress()
    progress.say("begins")
    for step in range(1, 101):
        _report(progress, step)
    progress.close()
    begins, line, rest = shown.screen()
    assert (begins, rest) == ("begins", "")
    assert line.startswith("step 100/100")
    assert line.endswith("ETA 0:00")
    assert len(line) < columns
    assert ("examples/s" in line) == (columns == 200)
    assert ("eval accuracy 0.5" in line) == (columns >= 80)
    assert ("eval loss 0.3" in line) == (columns == 200)
    assert shown.written.count(b"step ") > 90


def test_a_terminal_that_becomes_narrower(terminal):
    shown = terminal(100)
    progress = _progress()
    for step in range(1, 5):
        _report(progress, step)
    shown.resize(40)
    progress.say("narrower")
    for step in range(5, 9):
        _report(progress, step)
    progress.close()
    shown.screen()
    before, after = shown.written.decode().split("narrower\r\n")
    assert max(map(len, before.split("\r\033[K"))) > 40
    assert max(map(len, after.split("\r\033[K"))) < 40


def test_what_others_print_stands_above_in_one_piece(terminal):
    shown = terminal()
    handler = logging.StreamHandler(sys.stderr)  # holds the stream, as TensorFlow's does
    progress = _progress()
    for step in range(1, 4):
        _report(progress, step)
        print("printed", step)
        print("warned", step, file=sys.stderr)
        handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, f"logged {step}", (), None))
    print("half", end="")
    _report(progress, 4)
    progress.close()
    print("after")
    lines = shown.screen()
    for step in (1, 2, 3):
        assert f"printed {step}" in lines
        assert f"warned {step}" in lines
        assert f"logged {step}" in lines
    assert [line[:10] for line in lines if line.startswith(("half", "step", "after"))] == [
        "half",
        "step 4/100",
        "after",
    ]
    assert "write" not in vars(sys.stderr)


def test_a_training_on_a_terminal(terminal, tmp_path):
    class Step(trainers.Step):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(1.0)

        def __call__(self, batch, key):
            self.w.assign_sub(0.01 * tf.reduce_mean(batch["x"]))
            return {"loss": self.w}

    shown = terminal(400)
    step = Step()
    trainers.Trainer(
        step,
        pipelines.Pipeline(pipelines.sources.arrays({"x": np.ones(40, np.float32)})).batch(4),
        tmp_path,
        runner="eager",
        log_every=1,
        evaluate=lambda: {"w": step.w},
        evaluate_every=5,
        hooks=[("checkpoint", lambda trainer: print("saved", trainer.finished_steps))],
    ).run(20)
    begins, saved, line, rest = shown.screen()
    assert begins.startswith(f"{tmp_path}: step 0 to 20")
    assert (saved, rest) == ("saved 20", "")
    assert re.match(r"step 20/20  loss 0\.8  eval w 0\.85  \S+ steps/s .* ETA 0:00$", line)


@pytest.mark.parametrize(("interval", "shown"), [(1000.0, [1, 9]), (0.0, list(range(1, 10)))])
def test_a_file_gets_a_line_per_interval_with_the_first_and_the_last(monkeypatch, capsys, interval, shown):
    monkeypatch.setattr(console, "_FILE_INTERVAL", interval)
    progress = _progress()
    for step in range(1, 10):
        rates = _report(progress, step)
        assert ("steps_per_second" in rates) == (step > 1)  # TensorBoard gets them whatever is shown
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == shown
    assert "\r" not in "".join(lines)


def test_rates_are_those_since_the_line_before(monkeypatch, capsys):
    monkeypatch.setattr(console, "_FILE_INTERVAL", 1000.0)
    progress = _progress(stop=1000)
    _report(progress, 1)
    for step in (2, 3, 500):
        time.sleep(0.02)
        last = _report(progress, step)
    progress.close()
    (shown,) = re.findall(r"(\S+) steps/s", capsys.readouterr().err)
    assert float(shown) < 0.7 * last["steps_per_second"]  # 499 steps in three intervals, and 497 in the last of them


def test_the_last_line_comes_before_what_is_said_at_the_end(monkeypatch, capsys):
    monkeypatch.setattr(console, "_FILE_INTERVAL", 1000.0)
    progress = _progress()
    for step in (1, 2, 3):
        _report(progress, step)
    progress.say("SIGTERM: saved step 3")
    progress.close()
    assert [line[:7] for line in capsys.readouterr().err.splitlines()] == ["step 1/", "step 3/", "SIGTERM"]


def test_an_invisible_one_is_silent(capsys):
    progress = Progress(10, 1, lambda: None, visible=False)
    _report(progress, 1)
    assert "steps_per_second" in _report(progress, 2)
    progress.say("hidden")
    progress.close()
    assert capsys.readouterr().err == ""
