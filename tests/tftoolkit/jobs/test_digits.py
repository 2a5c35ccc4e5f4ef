"""The main job, whole: trained, killed, resumed, exported, reported."""

import hashlib
import html.parser
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


def command(directory: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tftoolkit", "train", "digits", f"--directory={directory}", *options]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return {**os.environ, "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("data"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    """The folder of an undisturbed run, and what it printed."""
    directory = tmp_path_factory.mktemp("runs") / "digits"
    done = subprocess.run(command(directory), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def final_checkpoint(directory: Path) -> dict[str, str]:
    newest = max((directory / "checkpoints").glob("step-*"))
    files = [path for path in sorted(newest.iterdir()) if "data-" in path.name]
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_reaches_the_expected_accuracy(finished):
    directory, output = finished
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "eval"
    assert last["step"] == 2200
    assert last["accuracy"] >= 0.98
    assert f"test accuracy {last['accuracy']:.2%} (the recipe expects at least 98.0%)" in output


def test_leaves_every_promised_file(finished):
    directory, _ = finished
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
        assert row["metric"] >= row["golden_metric"] - 0.01


def test_a_second_run_says_that_it_is_finished(finished, environment):
    directory, output = finished
    before = (directory / "report.html").stat().st_mtime_ns
    done = subprocess.run(command(directory), env=environment, capture_output=True, text=True, check=True)
    assert "already finished at step 2200" in done.stderr
    assert done.stdout.splitlines()[-2:] == output.splitlines()[-2:]
    assert (directory / "report.html").stat().st_mtime_ns == before


def test_other_settings_are_refused(finished, environment):
    directory, _ = finished
    done = subprocess.run(
        command(directory, "--config.seed=1"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "begun with other settings (seed: 0 there, 1 now)" in done.stderr


@pytest.mark.slow
def test_killed_at_random_and_run_again_it_ends_with_the_same_bits(finished, environment, tmp_path):
    undisturbed, _ = finished
    directory = tmp_path / "digits"
    metrics = directory / "metrics.jsonl"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    killed_at = sorted(rng.sample(range(1, 2000), 3))
    for step in killed_at:
        terminal, other = os.openpty()  # where the progress line is new every 22 steps, and at most 10 times a second
        running = subprocess.Popen(command(directory), env=environment, stdout=subprocess.DEVNULL, stderr=other)
        os.close(other)
        shown, reached = b"", 0
        while reached < step:
            shown = shown[-100:] + os.read(terminal, 4096)
            reached = max(map(int, re.findall(rb"step (\d+)/2200", shown)), default=0)
        time.sleep(rng.random() / 4)  # somewhere between two lines, a checkpoint or an evaluation included
        running.send_signal(signal.SIGKILL)
        os.close(terminal)
        running.wait()
    done = subprocess.run(command(directory), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert final_checkpoint(directory) == final_checkpoint(undisturbed)
    assert metrics.read_bytes() == (undisturbed / "metrics.jsonl").read_bytes()
    for file in ("model.tflite", "model_int8.tflite"):
        assert (directory / "export" / file).read_bytes() == (undisturbed / "export" / file).read_bytes()


@pytest.mark.slow
def test_half_an_export_is_done_again(finished, environment, tmp_path):
    directory = tmp_path / "digits"
    shutil.copytree(finished[0], directory)
    (directory / "export" / "report.txt").unlink()
    (directory / "export" / "model.tflite").write_bytes(b"half a file")
    done = subprocess.run(command(directory), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    original = finished[0] / "export" / "model.tflite"
    assert (directory / "export" / "model.tflite").read_bytes() == original.read_bytes()


def test_a_damaged_newest_checkpoint_costs_only_its_steps(finished, environment, tmp_path):
    directory = tmp_path / "digits"
    shutil.copytree(finished[0], directory)
    newest = max((directory / "checkpoints").glob("step-*"))
    data = next(path for path in newest.iterdir() if "data-" in path.name)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    done = subprocess.run(command(directory), env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert newest.name in done.stderr
    assert "step 1980 to 2200" in done.stderr
    assert final_checkpoint(directory) == final_checkpoint(finished[0])


def test_a_vanished_data_folder_is_one_message_and_loses_nothing(finished, environment, tmp_path):
    directory = tmp_path / "digits"
    shutil.copytree(finished[0], directory)
    file = tmp_path / "no folder"
    file.write_text("")
    broken = {**environment, "TFDS_DATA_DIR": str(file / "data")}
    done = subprocess.run(command(directory), env=broken, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "SourceError: cannot prepare the digits data set" in done.stderr
    assert "TFDS_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert final_checkpoint(directory) == final_checkpoint(finished[0])


def test_a_run_folder_that_cannot_be_written(environment, tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command(tmp_path / "file" / "run"), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "RunFolderError: cannot use the run folder" in done.stderr
    assert "--directory" in done.stderr


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
    assert f"{100 * last['accuracy']:.2f} %" in text
    wrong = round(360 * (1 - last["accuracy"]))
    assert page.figures == ["wrong"] * wrong + [None] * (60 - wrong)
    assert text.count("<svg") == 3
    tflite = ("model.tflite", "model_float16.tflite", "model_int8.tflite")
    for file in (*tflite, "model.onnx", "saved_model", "saved_model_native"):
        assert f"<td>{file}</td>" in text


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
