"""The code on the pages about export runs, as a reader would run it: in an empty folder, and in order."""

import re

import pytest


@pytest.mark.slow
def test_the_page_on_export_runs(tmp_path, blocks, run):
    (tmp_path / "page.py").write_text("".join(blocks("export", "python")))
    output = run("import page", tmp_path)
    assert "the proof says" in output
    made = ["classifier.tflite.proof.json", "classifier.onnx", "small.tflite", "native.tflite.delegate/delegate.json"]
    assert all((tmp_path / name).exists() for name in made)


@pytest.mark.slow
def test_the_page_on_quantisation_runs(tmp_path, monkeypatch, blocks, run):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "page.py").write_text("".join(blocks("quantization")))
    output = run("import page", tmp_path)
    (worst,) = re.findall(r"^error at the output.*\n.* CONV_2D +(\S+)$", output, re.MULTILINE)
    (proposed,) = re.findall(r"^keep_float=(.*)$", output, re.MULTILINE)
    assert worst in proposed
    assert {path.name for path in tmp_path.glob("*.tflite")} == {
        "after.tflite", "kept.tflite", "proposed.tflite", "trained.tflite",
    }  # fmt: skip
