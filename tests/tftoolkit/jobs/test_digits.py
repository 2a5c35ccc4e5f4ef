"""The main job, whole: trained, killed, resumed, exported, reported.

The fast tests run it in this process with 220 steps, the slow ones as a user does.
"""

import contextlib
import hashlib
import html.parser
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import recipe_results

from tftoolkit import cli, jobs
from tftoolkit.trainers import recipes

# 10 epochs, with a checkpoint in the middle; int8 costs a model that is not yet sure of itself more.
SHORT = [
    "--config.steps=220", "--config.warmup_steps=20", "--config.evaluate_every=110", "--config.checkpoint_every=110",
    "--config.calibration_examples=100", "--config.max_drop=0.05",
]  # fmt: skip


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tftoolkit", "train", "digits", f"--directory={directory}", *options]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def environment(data):
    return {**os.environ, "TFDS_DATA_DIR": str(data)}


def train(directory: Path, data: Path, *options: str) -> tuple[int, str, str]:
    """Trains in this process; returns the exit code and what was printed."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        patch.setenv("TFDS_DATA_DIR", str(data))
        patch.setattr(sys, "argv", list(sys.argv))  # which ml_collections reads, and so train sets
        code = cli.main(["train", "digits", f"--directory={directory}", *options])
    return code, output.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The folder of an undisturbed short run, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    code, output, errors = train(directory, data, *SHORT)
    assert code == 0, errors
    return directory, output


@pytest.fixture
def copy(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "digits"))


def final_checkpoint(directory: Path) -> dict[str, str]:
    newest = max((directory / "checkpoints").glob("step-*"))
    files = [path for path in sorted(newest.iterdir()) if "data-" in path.name]
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_files(directory: Path, drop: float) -> None:
    for path in (
        "config.json", "metrics.jsonl", "report.html", "export/model.tflite", "export/model_int8.tflite",
        "export/saved_model/saved_model.pb", "export/saved_model_native/saved_model.pb", "export/report.json",
    ):  # fmt: skip
        assert (directory / path).stat().st_size > 0, path
    assert list((directory / "tensorboard").glob("events.out.tfevents.*"))
    rows = json.loads((directory / "export/report.json").read_text())["rows"]
    int8 = "TFLite int8, 1 op in float"  # the converter leaves the normalisation's square there
    assert [row["format"] for row in rows] == [
        "SavedModel", "SavedModel, native", "TFLite float32", "TFLite float16", int8, "ONNX",
    ]  # fmt: skip
    for row in rows:
        assert row["metric"] >= row["golden_metric"] - drop


@pytest.mark.parametrize("seed", recipe_results.SEEDS)
def test_reaches_the_expected_accuracy(environment, tmp_path, seed):
    directory = tmp_path / "digits"
    asked = command(directory, f"--config.seed={seed}")
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = recipes.load("digits")
    recipe_results.check(directory, jobs.find(config.job)(config))
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"test accuracy {last['accuracy']:.2%} (the recipe expects at least 98.00%)" in done.stdout
    check_files(directory, 0.01)


def test_a_tenth_of_the_training_leaves_every_promised_file(finished):
    directory, output = finished
    check_files(directory, 0.05)
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [110, 220]
    assert rows[-1]["accuracy"] > 0.9
    assert f"test accuracy {rows[-1]['accuracy']:.2%} (the recipe expects at least 98.00%)" in output
    assert len([row for row in rows if row["kind"] != "eval"]) == 10


def test_a_second_run_says_that_it_is_finished(finished, data):
    directory, output = finished
    before = (directory / "report.html").stat().st_mtime_ns
    code, again, errors = train(directory, data, *SHORT)
    assert code == 0
    assert "already finished at step 220" in errors
    assert again.splitlines()[-3:] == output.splitlines()[-3:]
    assert (directory / "report.html").stat().st_mtime_ns == before


def test_other_settings_are_refused(finished, data):
    code, _, errors = train(finished[0], data, *SHORT, "--config.seed=1")
    assert code == 1
    assert "begun with other settings (seed: 0 there, 1 now)" in errors


@pytest.mark.slow
def test_killed_at_random_and_run_again_it_ends_with_the_same_bits(finished, environment, tmp_path):
    undisturbed, _ = finished
    directory = tmp_path / "digits"
    metrics = directory / "metrics.jsonl"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    killed_at = sorted(rng.sample(range(1, 200), 2))
    again = command(directory, *SHORT)
    for step in killed_at:
        terminal, other = os.openpty()  # where the progress line is new every 22 steps, and at most 10 times a second
        running = subprocess.Popen(again, env=environment, stdout=subprocess.DEVNULL, stderr=other)
        os.close(other)
        shown, reached = b"", 0
        while reached < step:
            shown = shown[-100:] + os.read(terminal, 4096)
            reached = max(map(int, re.findall(rb"step (\d+)/220", shown)), default=0)
        time.sleep(rng.random() / 4)  # somewhere between two lines, a checkpoint or an evaluation included
        running.send_signal(signal.SIGKILL)
        os.close(terminal)
        running.wait()
    done = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert final_checkpoint(directory) == final_checkpoint(undisturbed)
    assert metrics.read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    for file in ("model.tflite", "model_int8.tflite"):
        assert (directory / "export" / file).read_bytes() == (undisturbed / "export" / file).read_bytes()


@pytest.mark.slow
def test_half_an_export_is_done_again(finished, copy, environment):
    (copy / "export" / "report.txt").unlink()
    (copy / "export" / "model.tflite").write_bytes(b"half a file")
    done = subprocess.run(command(copy, *SHORT), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    original = finished[0] / "export" / "model.tflite"
    assert (copy / "export" / "model.tflite").read_bytes() == original.read_bytes()


@pytest.mark.slow
def test_a_format_whose_runtime_came_later_is_made_by_the_next_run(copy, data, monkeypatch):
    for left in (copy / "export").glob("model.onnx*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("tftoolkit.jobs.exports._NEEDED", {"onnx": ("not_installed",)})
        code, output, _ = train(copy, data, *SHORT)
    assert code == 0
    assert "Exporting" not in output
    code, output, errors = train(copy, data, *SHORT)
    assert code == 0, errors
    assert "Exporting all formats again, since onnx can be made by now" in output
    check_files(copy, 0.05)
    assert "<td>model.onnx</td>" in (copy / "report.html").read_text()


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_its_steps(finished, copy, data):
    newest = max((copy / "checkpoints").glob("step-*"))
    file = next(path for path in newest.iterdir() if "data-" in path.name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged .* from the intact checkpoint of step 110"):
        code, _, errors = train(copy, data, *SHORT)
    assert code == 0, errors
    assert "step 110 to 220" in errors
    assert final_checkpoint(copy) == final_checkpoint(finished[0])


def test_a_vanished_data_folder_is_one_message_and_loses_nothing(finished, copy, tmp_path):
    (tmp_path / "no folder").write_text("")
    code, _, errors = train(copy, tmp_path / "no folder" / "data", *SHORT)
    assert code == 1
    assert "SourceError: cannot prepare the digits data set" in errors
    assert "TFDS_DATA_DIR" in errors
    assert "Traceback" not in errors
    assert final_checkpoint(copy) == final_checkpoint(finished[0])


def test_a_run_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = train(tmp_path / "file" / "run", data)
    assert code == 1
    assert "RunFolderError: cannot use the run folder" in errors
    assert "--directory" in errors


class Page(html.parser.HTMLParser):
    """Collects what a browser would fetch, and the marked pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.figures: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("img", "script", "link", "iframe"):
            self.fetched.append(values.get("src") or values.get("href") or "")
        if tag == "figure":
            self.figures.append(values.get("class"))


def test_the_report_shows_the_run_and_fetches_nothing(finished):
    directory, _ = finished
    text = (directory / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not re.search(r"url\(\s*['\"]?http|@import", text)
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['accuracy']:.2%}" in text
    wrong = round(360 * (1 - last["accuracy"]))
    assert page.figures == ["wrong"] * wrong + [None] * (60 - wrong)
    assert text.count("<svg") == 3
    tflite = ("model.tflite", "model_float16.tflite", "model_int8.tflite")
    for file in (*tflite, "model.onnx", "saved_model", "saved_model_native"):
        assert f"<td>{file}</td>" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_the_report_opens_in_a_browser_without_a_network(finished, tmp_path):
    directory, _ = finished
    picture = tmp_path / "report.png"
    subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,1800", f"--screenshot={picture}",
            f"file://{directory / 'report.html'}",
        ],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    from PIL import Image

    colours = Image.open(picture).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 100  # curves, digits and text, not a blank page
