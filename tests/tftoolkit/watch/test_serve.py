"""``tftoolkit serve``: what the server gives and refuses, and the page in headless Chromium."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from run_folders import evaluated, make, train

from tftoolkit.export.runtimes import browser
from tftoolkit.watch import server

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


@contextlib.contextmanager
def serving(folder):
    """The port at which the folder's runs are served meanwhile."""
    running = server.server(folder, 0)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running.server_port
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def ask(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_runs_and_metrics(tmp_path):
    folder = make(tmp_path / "runs/a b&c", [train(1, loss=1.0), b'{"kind": "train", "step": 2, "loss": NaN}\n'])
    with serving(tmp_path / "runs") as port:
        (run,) = json.loads(ask(port, "/runs")[1])["runs"]
        assert (run["name"], run["step"]) == ("a b&c", 2)
        part = json.loads(ask(port, "/metrics?run=a+b%26c")[1])
        assert part["lines"] == [train(1, loss=1.0), train(2, loss=None)]
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(evaluated(2, loss=0.5)) + "\n")
        rest = json.loads(ask(port, f"/metrics?run=a+b%26c&offset={part['offset']}&mark={part['mark']}")[1])
        assert (rest["lines"], rest["again"]) == ([evaluated(2, loss=0.5)], False)
        make(tmp_path / "runs/new", [train(1)])
        assert len(json.loads(ask(port, "/runs")[1])["runs"]) == 2
        assert ask(port, "/metrics?run=new")[0].status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../../etc/passwd", 404), ("/%2e%2e/server.py", 404), ("/server.py", 404), ("//etc/passwd", 404),
        ("/metrics", 400), ("/metrics?run=../secret", 400), ("/metrics?run=a&offset=-1", 400),
        ("/metrics?run=a&offset=x", 400), ("/metrics?run=", 400), ("/metrics?run=a&offset=9999999999", 200),
        ("/metrics?run=pipe", 404), ("http://evil.example/", 421),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly(tmp_path, path, status):
    make(tmp_path / "runs/a", [train(1)])
    make(tmp_path / "secret", [train(1)])
    (make(tmp_path / "runs/pipe") / "metrics.jsonl").unlink()
    os.mkfifo(tmp_path / "runs/pipe/metrics.jsonl")
    with serving(tmp_path / "runs") as port:
        answer, body = ask(port, path)
        assert answer.status == status
        assert b"root:" not in body
        assert ask(port, "/")[0].status == 200


def test_only_this_machine_under_its_own_name(tmp_path):
    with serving(tmp_path) as port:
        for host, status in ((f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), (f"evil.example:{port}", 421)):
            assert ask(port, "/runs", Host=host)[0].status == status
        assert ask(port, "/runs", method="POST")[0].status == 501
        answer, body = ask(port, "/", method="HEAD")
        assert (answer.status, body) == (200, b"")
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        with pytest.raises(OSError, match="in use"):
            server.server(tmp_path, port)
    with pytest.raises(FileNotFoundError):
        server.server(tmp_path / "none", 0)


def test_the_page_names_only_its_own_files():
    for file in server._PAGE.iterdir():
        assert "http" not in file.read_text().replace("http://www.w3.org/2000/svg", "")
    assert {file.name for file in server._PAGE.iterdir()} == {name for name, _ in server._FILES.values()}


# In a browser

TRAINING = """
import pathlib, sys, time
import tensorflow as tf
from tftoolkit import pipelines, trainers

class Line(trainers.Step):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(0.0)
        self.update = trainers.Update([self.w], trainers.optimizers.Sgd(0.02))

    def __call__(self, batch, key):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(batch["x"] * self.w - 1.0))
        self.update.apply([tape.gradient(loss, self.w)], [self.w])
        return {"loss": loss}

def wait(trainer):
    # At steps 20 and 60, until the test has seen enough.
    while trainer.finished_steps in (20, 60) and not pathlib.Path(sys.argv[1] + str(trainer.finished_steps)).exists():
        time.sleep(0.05)

pipeline = pipelines.Pipeline(pipelines.sources.arrays({"x": [1.0] * 8})).batch(4)
step = Line()
trainers.Trainer(
    step, pipeline, sys.argv[1], runner="eager", log_every=1, evaluate=lambda: {"loss": abs(1 - float(step.w))},
    evaluate_every=20, hooks=[("log", wait)],
).run(100)
"""


@pytest.fixture(scope="module")
def chromium():
    with browser.Browser() as running:
        yield running


@contextlib.contextmanager
def opened(chromium, folder, width=1280, height=900):
    chromium.send(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    chromium.requests.clear()
    with serving(folder) as port:
        address = f"http://127.0.0.1:{port}/"
        chromium.open(address)
        chromium.wait_for("window.ready")
        yield address
        assert all(url.startswith((address, "data:")) for url in chromium.requests)
        assert chromium.errors == []
        chromium.open("about:blank")


def texts(chromium, selector):
    return chromium.evaluate(f"[...document.querySelectorAll({selector!r})].map(item => item.textContent)")


def press(chromium, key, code=None):
    for kind in ("keyDown", "keyUp"):
        options = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code or 0}
        chromium.send("Input.dispatchKeyEvent", options)


FACTS = "document.querySelector('.facts').textContent"
CURVE = """document.querySelector('[data-kind="train"] path').getAttribute('d')"""


@needs_browser
@pytest.mark.slow
def test_a_training_is_watched_while_it_runs(chromium, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with opened(chromium, folder):
        chromium.wait_for("document.getElementById('hint').textContent.startsWith('There are no runs')")
        with subprocess.Popen([sys.executable, "-c", TRAINING, str(folder / "live")], stderr=subprocess.DEVNULL) as run:
            chromium.wait_for(f"document.querySelector('.facts') && {FACTS}.startsWith('running, step')", timeout=180)
            chromium.evaluate(
                "document.querySelector('#runs input').checked || document.querySelector('#runs input').click()"
            )
            chromium.wait_for("document.querySelectorAll('.chart').length == 1")
            before = chromium.evaluate(CURVE)
            (folder / "live20").touch()
            chromium.wait_for(f"{CURVE}.length > {len(before)} + 20")
            assert run.poll() is None  # it grew while the training ran
            (folder / "live60").touch()
            assert run.wait(120) == 0
        chromium.wait_for(f"{FACTS}.startsWith('finished, step 100 of 100')")
        assert "live: finished at step 100" in texts(chromium, "#said")
        chromium.wait_for("document.querySelectorAll('.legend li').length == 2")
        last = json.loads((folder / "live/metrics.jsonl").read_text().splitlines()[-1])
        assert float(texts(chromium, ".legend .value")[1]) == pytest.approx(last["loss"], rel=1e-3)


@pytest.fixture
def three(tmp_path):
    """Two runs that went well and one that didn't."""
    for name, rate in (("fast", 8), ("slow", 30)):
        losses = [
            train(step, loss=2.0 ** (-step / rate) + 0.1 * (step % 2), accuracy=step / 100) for step in range(100)
        ]
        make(tmp_path / f"runs/{name}", [*losses, evaluated(99, loss=0.5)], {"job": "tabular", "steps": 100})
    broken = [train(step, loss=None if step > 5 else -1.0) for step in range(10)]
    make(tmp_path / "runs/<b>broken</b>", broken, status={"state": "diverged"})
    return tmp_path / "runs"


@needs_browser
@pytest.mark.slow
def test_choosing_with_the_keyboard(chromium, three):
    with opened(chromium, three):
        chromium.wait_for("document.querySelectorAll('.chart').length == 2")
        assert texts(chromium, ".chart h2") == ["loss", "accuracy"]
        assert texts(chromium, "#runs .name") == ["<b>broken</b>", "fast", "slow"]
        assert texts(chromium, ".bad") == ["diverged"]
        names = texts(chromium, ".legend .name")
        assert names[:3] == ["<b>broken</b>, train (4 not finite)", "fast, train", "fast, eval"]
        reached = []
        for _ in range(14):
            press(chromium, "Tab", 9)
            reached.append(
                chromium.evaluate("(a => a.id || a.parentNode.textContent.trim() || a.tagName)(document.activeElement)")
            )
        assert reached[:6] == ["live", "filter", "none", "<b>broken</b>", "fast", "slow"]
        assert reached[6:10] == ["loss", "accuracy", "smoothing", "log"]
        chromium.evaluate("document.querySelectorAll('#runs input')[1].focus()")
        press(chromium, " ", 32)
        chromium.wait_for(
            "![...document.querySelectorAll('.legend .name')].some(item => item.textContent.startsWith('fast'))"
        )
        assert chromium.evaluate("document.activeElement === document.querySelectorAll('#runs input')[1]")
        chromium.evaluate("document.querySelector('#metrics input').click()")
        assert texts(chromium, ".chart h2") == ["accuracy"]
        chromium.evaluate("document.getElementById('none').click()")
        assert texts(chromium, "#hint") == ["No run is chosen."]
        chromium.evaluate("filter.value = 'slo'; filter.dispatchEvent(new Event('input'))")
        assert chromium.evaluate("[...document.querySelectorAll('#runs li')].map(item => item.hidden)") == [
            True,
            True,
            False,
        ]


@needs_browser
@pytest.mark.slow
def test_values_under_the_cursor_and_in_a_table(chromium, three):
    with opened(chromium, three):
        chromium.wait_for("document.querySelectorAll('.chart').length == 2")
        chromium.evaluate("document.querySelector('.chart svg').focus()")
        assert chromium.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        press(chromium, "Home", 36)
        for _ in range(8):
            press(chromium, "ArrowRight", 39)
        assert texts(chromium, ".at")[0] == "At step 8"
        values = dict(zip(*(texts(chromium, f".chart:first-child .{part}") for part in ("name", "value")), strict=True))
        assert values["fast, train"] == "0.5"
        assert values["fast, eval"] == "–"
        assert values["<b>broken</b>, train (4 not finite)"] == "not finite"
        assert "At step 8; <b>broken</b>, train: not finite; fast, train: 0.5" in texts(chromium, ".spoken")[0]
        place = chromium.evaluate(
            "(b => [b.x + b.width / 2, b.y + 50])(document.querySelector('.chart svg').getBoundingClientRect())"
        )
        chromium.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": place[0], "y": place[1]})
        chromium.wait_for("/At step (4|5|6)\\d/.test(document.querySelector('.at').textContent)")
        chromium.evaluate("document.querySelector('.chart summary').click()")
        chromium.wait_for("document.querySelectorAll('.chart tbody tr').length == 20")
        head = texts(chromium, ".chart th[scope=col]")
        last = texts(chromium, ".chart tbody tr:last-child > *")
        assert dict(zip(head, last, strict=True)) | {"slow, train": ""} == {
            "step": "99", "<b>broken</b>, train": "not finite", "fast, train": "0.1002", "fast, eval": "0.5",
            "slow, train": "", "slow, eval": "0.5",
        }  # fmt: skip
        label = chromium.evaluate("document.querySelector('.chart svg').getAttribute('aria-label')")
        assert "fast, eval: 0.5 at step 99, between 0.5 and 0.5" in label


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_smoothing_logarithm_and_width(chromium, three, width):
    with opened(chromium, three, width):
        chromium.wait_for("document.querySelectorAll('.chart').length == 2")
        assert chromium.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        before = chromium.evaluate("document.querySelector('[data-run=fast][data-kind=train] path').getAttribute('d')")
        chromium.evaluate("smoothing.value = 90; smoothing.dispatchEvent(new Event('input'))")
        assert texts(chromium, "#smoothed") == ["0.90"]
        curve = "document.querySelector('[data-run=fast][data-kind={}] path').getAttribute('d')"
        assert chromium.evaluate(curve.format("train")) != before
        assert chromium.evaluate(curve.format("raw"))
        chromium.evaluate("log.click()")
        # Values of -1 have no logarithm: a gap, not a crash.
        assert chromium.evaluate("document.querySelector('[data-run=\"<b>broken</b>\"] path').getAttribute('d')") == ""
        assert "NaN" not in chromium.evaluate("document.getElementById('charts').innerHTML")


@needs_browser
@pytest.mark.slow
def test_a_rewritten_run_and_a_server_that_ends(chromium, tmp_path):
    folder = make(tmp_path / "runs/a", [train(step, loss=1.0) for step in range(5)])
    with opened(chromium, tmp_path / "runs"):
        chromium.wait_for("document.querySelectorAll('.chart').length == 1")
        text = "".join(json.dumps(train(step, loss=3.0)) + "\n" for step in range(3))
        (folder / "metrics.jsonl").write_text(text)
        chromium.wait_for("document.querySelector('.legend .value').textContent == '3'")
        shutil.rmtree(folder)
        chromium.wait_for("document.querySelectorAll('#runs li').length == 0")
        chromium.evaluate("live.click()")
        assert texts(chromium, "#live") == ["Paused"]
        assert chromium.errors == []
    with subprocess.Popen(
        [sys.executable, "-m", "tftoolkit", "serve", str(tmp_path), "--port=0"], stdout=subprocess.PIPE, text=True
    ) as command:
        address = command.stdout.readline().split()[0]
        chromium.open(address)
        chromium.wait_for("window.ready")
        command.terminate()
        command.wait(60)
        chromium.errors.clear()
        end = time.monotonic() + 60
        while "does not answer" not in texts(chromium, "#said")[0] and time.monotonic() < end:
            time.sleep(0.1)
        assert texts(chromium, "#said") == ["tftoolkit serve does not answer; this page asks again."]
    chromium.errors.clear()
