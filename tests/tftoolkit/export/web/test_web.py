"""The exported web page in headless Chromium: draws, classifies, trains, and asks nobody outside."""

import math
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tftoolkit import export, trainers
from tftoolkit.export.proof import golden
from tftoolkit.export.proof.parity import GoldenCase
from tftoolkit.export.report import Row
from tftoolkit.export.runtimes import browser
from tftoolkit.export.runtimes.runtime import LiteRuntime, Signature, Tensor
from tftoolkit.export.runtimes.samples import Case
from tftoolkit.export.web import browser_page, serving
from tftoolkit.models.digits_cnn import DigitsCnn

MISSING = [name for name in ("npm", "chromium") if shutil.which(name) is None]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed: apt-get install them")


class Classifier(trainers.Step):
    def __init__(self):
        super().__init__()
        self.model = DigitsCnn(16)
        self.update = trainers.Update(self.model, trainers.optimizers.AdamW(2e-3))

    def __call__(self, batch, key):
        def losses(part, key):
            logits = self.model(part["image"])
            return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(part["label"], tf.int32), logits)

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


@pytest.fixture(scope="module")
def data():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images = images.astype(np.float32).reshape(-1, 8, 8, 1) / 16
    chosen = order[: 40 * 32].reshape(40, 32)
    return [{"image": images[rows], "label": labels[rows]} for rows in chosen]


@pytest.fixture(scope="module")
def trained(data):
    step = Classifier()
    compiled = tf.function(step)
    for _ in range(6):
        for batch in data:
            compiled(batch, tf.zeros([2], tf.int32))
    return step


SPEC = [tf.TensorSpec([1, 8, 8, 1], tf.float32, "image")]


@pytest.fixture(scope="module")
def page(tmp_path_factory, data, trained):
    folder = tmp_path_factory.mktemp("web")
    infer = (lambda image: {"probabilities": tf.nn.softmax(trained.model(image))}, SPEC)
    export.trainable_tflite(trained, folder / "digits.tflite", batches=data, infer=infer)
    return folder / "page", export.web(folder / "digits.tflite", folder / "page")


@pytest.fixture
def opened(page):
    with serving.served(page[0]) as address, browser.Browser() as chromium:
        chromium.open(address)
        chromium.wait_for("window.ready")
        yield chromium
        assert chromium.requests
        assert all(url.startswith((address, "data:")) for url in chromium.requests)
        assert chromium.errors == []


def arc(x, y, rx, ry, start, end):
    angles = [math.radians(start + (end - start) * step / 24) for step in range(25)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


STROKES = {
    "0": [arc(0.5, 0.5, 0.22, 0.36, -90, 270)],
    "1": [[(0.38, 0.28), (0.53, 0.14), (0.53, 0.86)]],
    "3": [arc(0.48, 0.32, 0.2, 0.18, -150, 90) + arc(0.48, 0.68, 0.24, 0.18, -90, 150)],
    "4": [[(0.58, 0.14), (0.26, 0.6), (0.76, 0.6)], [(0.6, 0.35), (0.6, 0.88)]],
}


def draw(chromium, strokes, *, size=1.0, touch=False):
    """With the mouse or a finger; ``size``: in a corner of the canvas, that much smaller."""
    chromium.evaluate("document.getElementById('clear').click()")
    place = "document.getElementById('drawing').getBoundingClientRect()"
    left, top, width = chromium.evaluate(f"(({{x, y, width}}) => [x, y, width])({place})")
    for stroke in strokes:
        points = [{"x": left + x * size * width, "y": top + y * size * width} for x, y in stroke]
        if touch:
            for kind, point in zip(["touchStart"] + ["touchMove"] * (len(points) - 1), points, strict=True):
                chromium.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
            chromium.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            button = {"button": "left", "buttons": 1, "clickCount": 1}
            for kind, point in zip(["mousePressed"] + ["mouseMoved"] * (len(points) - 1), points, strict=True):
                chromium.send("Input.dispatchMouseEvent", {"type": kind, **button, **point})
            chromium.send("Input.dispatchMouseEvent", {"type": "mouseReleased", **button, **points[-1]})


def bars(chromium):
    return chromium.evaluate("[...document.querySelectorAll('#bars .value')].map(item => item.textContent)")


BEST = "document.getElementById('best').textContent"


@needs_browser
@pytest.mark.slow
def test_training_in_the_browser_follows_tensorflow(page):
    report = page[1]
    loss = next(check for check in report.rows[0].checks if (check.signature, check.tensor) == ("train", "loss"))
    assert loss.error <= 1e-5
    cases, _ = golden.load(page[0] / "digits.tflite")
    assert sum(item.case.signature == "train" for item in cases) == 50
    assert {check.signature for check in report.rows[0].checks} == {"train", "infer", "get_weights", "set_weights"}
    assert report.rows[0].format == "web page, TFLite float32"


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"size": 0.4}, {"touch": True}], ids=["mouse", "small", "finger"])
def test_drawn_digits_are_classified(opened, how):
    for digit, strokes in STROKES.items():
        draw(opened, strokes, **how)
        opened.wait_for(f"{BEST} === '{digit}'", timeout=10)
    opened.evaluate("document.getElementById('clear').click()")
    opened.wait_for(f"{BEST} === '?'", timeout=10)


@needs_browser
@pytest.mark.slow
def test_a_correction_is_learned_and_forgotten(opened):
    draw(opened, STROKES["1"])
    opened.wait_for(f"{BEST} === '1'", timeout=10)
    before = bars(opened)
    for _ in range(3):  # it is a seven, the user says
        opened.evaluate("document.querySelectorAll('#labels button')[7].click()")
    opened.wait_for("document.getElementById('progress').textContent.startsWith('Step 30')", timeout=30)
    opened.wait_for(f"{BEST} === '7'", timeout=10)
    opened.evaluate("document.getElementById('forget').click()")
    opened.wait_for(f"{BEST} === '1'", timeout=10)
    assert bars(opened) == before


@needs_browser
@pytest.mark.slow
def test_the_proof_is_repeated_by_a_button(opened):
    opened.evaluate("document.getElementById('check').click()")
    opened.wait_for("document.getElementById('checked').textContent.startsWith('✓')", timeout=60)


@needs_browser
@pytest.mark.slow
def test_the_folder_needs_nothing_else(page, tmp_path):
    """Moved, served by the command line without npm or a cache, the types right."""
    shutil.copytree(page[0], tmp_path / "elsewhere")
    environment = {**os.environ, "PATH": "/nowhere", "TFTOOLKIT_CACHE_DIR": str(tmp_path / "empty")}
    command = [sys.executable, "-m", "tftoolkit", "web", str(tmp_path / "elsewhere"), "--port=0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{address}litert/litert_wasm_internal.wasm") as answer:
                assert answer.headers["Content-Type"] == "application/wasm"
            with browser.Browser() as chromium:
                chromium.open(address)
                chromium.wait_for("window.ready")
                draw(chromium, STROKES["0"])
                chromium.wait_for(f"{BEST} === '0'", timeout=10)
        finally:
            server.terminate()
    assert export.verify(tmp_path / "elsewhere" / "digits.tflite").rows[0].checks


@needs_browser
@pytest.mark.slow
def test_quantised_file(tmp_path, trained, data):
    images = np.concatenate([batch["image"] for batch in data])[:150]
    export.tflite(
        trained.model, tmp_path / "digits.tflite", signatures={"serving_default": (trained.model, SPEC)},
        quantize="int8", representative=[{"image": image[None]} for image in images],
    )  # fmt: skip
    report = export.web(tmp_path / "digits.tflite", tmp_path / "page", labels=list("abcdefghij"), title="Letters")
    assert report.rows[0].format.startswith("web page, TFLite int8")
    with serving.served(tmp_path / "page") as address, browser.Browser() as chromium:
        chromium.open(address)
        chromium.wait_for("window.ready")
        assert chromium.evaluate("document.title") == "Letters"
        assert chromium.evaluate("document.getElementById('training').hidden") is True
        draw(chromium, STROKES["3"])
        chromium.wait_for(f"{BEST} === 'd'", timeout=10)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("fetch('https://example.com/font.css').catch(() => {});", "asks for https://example.com/font.css"),
        ("null.missing;", "TypeError"),
        ("window.checkModel = () => new Promise(() => {});", "does not answer Runtime.evaluate"),
    ],
    ids=["outside", "error", "hangs"],
)
def test_a_page_that_fails_or_asks_outside_is_not_written(page, tmp_path, monkeypatch, script, match):
    template = shutil.copytree(browser_page.TEMPLATE, tmp_path / "template")
    code = (template / "page.js").read_text()
    (template / "page.js").write_text(code + script)
    monkeypatch.setattr(browser_page, "TEMPLATE", template)
    monkeypatch.setattr(browser_page, "SECONDS", 10)
    with pytest.raises(export.ExportError, match=match):
        export.web(page[0] / "digits.tflite", tmp_path / "page")
    assert [item.name for item in tmp_path.iterdir()] == ["template"]


@needs_browser
@pytest.mark.slow
def test_other_numbers_than_tensorflows_are_refused(page, tmp_path):
    """The last of the 50 losses is claimed to be 2e-5 more than TensorFlow computed."""
    file = Path(shutil.copy(page[0] / "digits.tflite", tmp_path))
    cases, proof = golden.load(page[0] / "digits.tflite")
    last = max(place for place, item in enumerate(cases) if item.case.signature == "train")
    cases[last].outputs["loss"] += np.float32(2e-5)
    signatures = LiteRuntime(file).signatures
    row = Row("digits.tflite", proof["measured"]["format"], 1, {}, (), None, None)
    for item, place in zip(golden.save(file, tmp_path, cases, signatures, row), golden.beside(file), strict=True):
        item.rename(place)
    with pytest.raises(export.ExportError, match="parity failed at signature 'train', tensor 'loss'"):
        export.web(file, tmp_path / "page")
    assert not (tmp_path / "page").exists()


# Without a browser


def proven(tmp_path, shape=(1, 8, 8, 1), outputs=(1, 10), dtype=np.float32, stored=None, kind="real"):
    """A file with a proof beside it of one call; what is tried here reads no more of it."""
    file = tmp_path / "model.tflite"
    file.write_bytes(b"content")
    x, y = Tensor("x", shape, np.dtype(dtype), stored), Tensor("y", outputs, np.dtype(np.float32))
    image = np.zeros([size or 1 for size in shape], dtype)
    case = GoldenCase(Case(kind, "infer", {"x": image}), {"y": np.zeros(outputs, np.float32)}, {"y": 1.0})
    made = golden.save(
        file, tmp_path, [case], {"infer": Signature((x,), (y,))}, Row("f", "TFLite", 1, {}, (), None, None)
    )
    for item, place in zip(made, golden.beside(file), strict=True):
        item.rename(place)
    return file


@pytest.mark.parametrize(
    ("model", "arguments", "match"),
    [
        ({"shape": (None, 8, 8, 1)}, {}, "needs fixed shapes: export with signatures"),
        ({"shape": (1, 8, 8, 3)}, {}, r"one picture, \[1, height, width, 1\]; infer takes x: \[1, 8, 8, 3\]"),
        ({"shape": (1, 64)}, {}, "one picture"),
        ({"outputs": (1, 8, 8, 1)}, {}, r"scores, \[1, classes\]; infer returns y"),
        ({"dtype": np.int64}, {}, "x of signature 'infer' is int64; LiteRT.js passes float32, int32, uint8"),
        ({"stored": "int8 (scale 1, zero point 0)"}, {}, "is int8 .* without integer_io"),
        ({"kind": "random"}, {}, "holds no real pictures"),
        ({}, {"labels": ["a", "b"]}, "labels has 2 names, the model 10 classes"),
    ],
    ids=["free", "colour", "flat", "image out", "int64", "int8", "not real", "labels"],
)
def test_files_that_do_not_fit_the_page(tmp_path, model, arguments, match):
    file = proven(tmp_path, **model)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=match):
        export.web(file, tmp_path / "page", **arguments)
    assert sorted(tmp_path.iterdir()) == before


def test_arguments_that_are_no_proven_file(tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.tflite file"):
        export.web(tmp_path / "model.onnx", tmp_path / "page")
    with pytest.raises(FileNotFoundError, match="no such file"):
        export.web(tmp_path / "model.tflite", tmp_path / "page")
    (tmp_path / "model.tflite").write_bytes(b"content")
    with pytest.raises(ValueError, match="has no proof beside it"):
        export.web(tmp_path / "model.tflite", tmp_path / "page")
    file = proven(tmp_path)
    (tmp_path / "page").mkdir()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.web(file, tmp_path / "page")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    file = proven(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setenv("TFTOOLKIT_CACHE_DIR", str(tmp_path.parent / f"{tmp_path.name}_cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm is not on the path.* apt-get install nodejs npm"):
        export.web(file, tmp_path / "page")
    monkeypatch.delenv("CHROME", raising=False)
    with pytest.raises(FileNotFoundError, match=r"none of chromium, .* apt-get install chromium"):
        browser.find()
    monkeypatch.setenv("CHROME", "/nowhere/chrome")
    with pytest.raises(FileNotFoundError, match=r"\$CHROME is /nowhere/chrome, which is no program"):
        browser.find()
    assert sorted(tmp_path.iterdir()) == before


def test_npm_that_fails_is_quoted(tmp_path, monkeypatch):
    file = proven(tmp_path)
    bin_folder = tmp_path.parent / f"{tmp_path.name}_bin"
    bin_folder.mkdir()
    (bin_folder / "npm").write_text("#!/bin/sh\necho 'npm error network request failed' >&2\nexit 1\n")
    (bin_folder / "npm").chmod(0o755)
    monkeypatch.setenv("TFTOOLKIT_CACHE_DIR", str(tmp_path.parent / f"{tmp_path.name}_cache"))
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match=r"could not fetch @litertjs/core@2\.5\.3: npm error network request failed"):
        export.web(file, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_drawing_is_measured_on_real_pictures():
    """A block of height 6 on 10 pixels; a dark line of thickness 3 and length 30 on 40 bright ones."""
    picture = np.zeros([10, 10])
    picture[2:8, 3:7] = 1.0
    found = browser_page._drawing(np.stack([picture] * 3))
    assert found["background"] == 0
    assert found["ink"] == 1
    assert found["fit"] == 0.6
    line = np.zeros([40, 40])
    line[5:35, 18:21] = 255.0
    found = browser_page._drawing(np.stack([255.0 - line]))
    assert (found["background"], found["ink"], found["fit"]) == (255, 0, 0.75)
    assert found["stroke"] * 40 == pytest.approx(3, rel=0.15)


@needs_browser
@pytest.mark.slow
def test_the_code_on_the_docs_page_runs(tmp_path):
    text = (Path(__file__).parents[4] / "docs" / "on_device.md").read_text()
    program = "".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page" / "index.html").exists()
    assert done.stdout.count("web page, TFLite") == 2
