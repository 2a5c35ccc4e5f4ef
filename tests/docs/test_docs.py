"""The code in docs/ runs, as a reader would run it: in an empty folder, in the order of the page."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import toolchain
from tftoolkit.pipelines import image

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?://|#) ([\w.]+\.(?:cc|cu|py))\b")


def run(program: str, folder: Path) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder with the tutorial's files, and its programs: blocks that name no file."""
    folder = tmp_path_factory.mktemp("tutorial")
    programs = []
    for _, code in _BLOCK.findall((DOCS / "custom_ops.md").read_text()):
        if named := _FILE.match(code):
            (folder / named[1]).write_text(code)
        else:
            programs.append(code)
    return folder, programs


@pytest.mark.slow
def test_the_op_tutorial_runs_and_its_saved_model_needs_no_module(tutorial):
    folder, programs = tutorial
    output = run("".join(code for code in programs if "import jax" not in code and "opcheck(" not in code), folder)
    assert "decay has shape [7], but its dimension channels must be 16 as in x" in output
    assert (folder / "plain/saved_model.pb").exists()
    assert (folder / "native/assets.extra/load.py").exists()
    (program,) = (code for code in programs if "runpy" in code)
    (folder / "leaky.py").rename(folder / "gone.py")
    run(program, folder)
    (folder / "gone.py").rename(folder / "leaky.py")


@pytest.mark.slow
def test_the_op_of_the_tutorial_is_in_order(tutorial):
    folder, programs = tutorial
    (program,) = (code for code in programs if "opcheck(" in code)
    assert "no check failed" in run(program, folder)


@pytest.mark.slow
@pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit")
def test_the_cuda_twin_of_the_tutorial_compiles(tutorial):
    folder, _ = tutorial
    sources = [folder / name for name in ("leaky.cc", "leaky_grad.cc", "leaky.cu")]
    handlers = custom_ops.load("Twin", sources, cuda=True, cache_dir=folder / "cache").handlers
    assert all(handlers[op].keys() == {"CPU", "CUDA"} for op in ("Leaky", "LeakyGrad"))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_op_tutorial_runs_in_jax(tutorial):
    folder, programs = tutorial
    (program,) = (code for code in programs if "import jax" in code)
    output = run(program + "import sys\nassert 'tensorflow' not in sys.modules\n", folder)
    assert "1.875" in output


def test_the_first_op_is_as_short_as_promised(tutorial):
    folder, _ = tutorial
    page = (DOCS / "custom_ops.md").read_text()
    assert f"in {len((folder / 'leaky.cc').read_text().splitlines())} lines" in page


def test_links_lead_somewhere():
    for page in DOCS.glob("*.md"):
        prose = re.sub(r"`[^`]*`", "", _BLOCK.sub("", page.read_text()))  # code has brackets of its own
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", prose):
            assert (DOCS / target).exists(), f"{page.name}: {target}"


@pytest.mark.slow
def test_the_page_on_text_audio_and_tables_runs(tmp_path):
    blocks = _BLOCK.findall((DOCS / "text_audio_tabular.md").read_text())
    output = run("import matplotlib\nmatplotlib.use('Agg')\n" + "".join(code for _, code in blocks), tmp_path)
    assert "(8, 256) (8, 256)" in output
    assert (tmp_path / "spectrograms.png").exists()


@pytest.mark.slow
def test_the_page_on_pipelines_runs(tmp_path):
    blocks = _BLOCK.findall((DOCS / "pipelines.md").read_text())
    (tmp_path / "page.py").write_text("".join(code for _, code in blocks))  # a file, since AutoGraph reads the sources
    output = run("import page", tmp_path)
    assert "<- slowest" in output
    assert "arrays, row 1: assertion failed: [such a label cannot be]" in output


@pytest.mark.slow
def test_the_page_on_training_runs(tmp_path):
    blocks = _BLOCK.findall((DOCS / "training.md").read_text())
    programs = [code for language, code in blocks if language == "python"]
    (script,) = (code for code in programs if _FILE.match(code))
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "page.py").write_text("".join(code for code in programs if code is not script))
    output = run("import page", tmp_path)
    assert len(re.findall(r"^(?:keras|tf_keras): \d\d\.\d%$", output, re.MULTILINE)) == 2
    assert "but the optimizer Adam of Keras 3" in output

    (shell,) = (code for language, code in blocks if language == "sh")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where "python" is this one
    done = subprocess.run(
        ["bash", "-e", "-c", shell], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["exit code 137", "the same"]


def test_the_page_on_images_names_every_stage():
    page = (DOCS / "images.md").read_text()
    assert [name for name in image.__all__ if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_the_page_on_images_runs(tmp_path):
    output = run("".join(code for _, code in _BLOCK.findall((DOCS / "images.md").read_text())), tmp_path)
    assert "(4, 224, 224, 3) (4, 2)\n(427, 640, 3)" in output


@pytest.mark.slow
def test_the_page_on_export_runs(tmp_path):
    blocks = _BLOCK.findall((DOCS / "export.md").read_text())
    (tmp_path / "page.py").write_text("".join(code for language, code in blocks if language == "python"))
    output = run("import page", tmp_path)
    assert "the proof says" in output
    made = ["classifier.tflite.proof.json", "classifier.onnx", "small.tflite", "native.tflite.delegate/delegate.json"]
    assert all((tmp_path / name).exists() for name in made)


@pytest.mark.slow
def test_the_page_on_quantisation_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    blocks = _BLOCK.findall((DOCS / "quantization.md").read_text())
    (tmp_path / "page.py").write_text("".join(code for _, code in blocks))
    output = run("import page", tmp_path)
    (worst,) = re.findall(r"^error at the output.*\n.* CONV_2D +(\S+)$", output, re.MULTILINE)
    (proposed,) = re.findall(r"^keep_float=(.*)$", output, re.MULTILINE)
    assert worst in proposed
    assert {path.name for path in tmp_path.glob("*.tflite")} == {
        "after.tflite", "kept.tflite", "proposed.tflite", "trained.tflite",
    }  # fmt: skip


@pytest.mark.slow
def test_the_page_on_several_devices_runs(tmp_path):
    (code,) = (code for language, code in _BLOCK.findall((DOCS / "distributed.md").read_text()) if language == "python")
    assert "step 200/200" in run(code, tmp_path)
