"""``tftoolkit export`` and ``tftoolkit verify``: files, messages and exit codes."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import cli, export


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    weight = tf.Variable(tf.random.Generator.from_seed(0).normal([6, 4]))
    real = [{"x": np.random.default_rng(0).standard_normal([200, 6]).astype(np.float32)}]
    signatures = {"f": (lambda x: {"y": tf.nn.relu(x @ weight)}, [tf.TensorSpec([None, 6], tf.float32, "x")])}
    export.saved_model(tf.Module(), folder / "export" / "saved_model", signatures=signatures, representative=real)
    return folder


def tftoolkit(*arguments):
    command = [sys.executable, "-m", "tftoolkit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


@pytest.mark.slow
def test_another_format_of_a_run(finished_run):
    done = tftoolkit("export", finished_run, "--quantize=int8", "--integer_io")
    assert done.returncode == 0, done.stderr
    assert "TFLite int8, int8 I/O" in done.stdout
    again = tftoolkit("verify", finished_run / "export" / "model_int8.tflite")
    assert again.returncode == 0, again.stderr
    assert "each within its bound" in again.stdout
    refused = tftoolkit("export", finished_run, "--quantize=int8")
    assert refused.returncode == 1
    assert "exists; pass --overwrite" in refused.stderr


def test_another_format_of_a_run_in_this_process(finished_run, tmp_path, capsys):
    file = tmp_path / "model.tflite"
    assert cli.main(["export", str(finished_run), f"--output={file}", "--quantize=float16"]) == 0
    assert "TFLite float16" in capsys.readouterr().out
    assert cli.main(["verify", str(file)]) == 0
    assert "each within its bound" in capsys.readouterr().out
    alone = tmp_path / "alone.tflite"
    alone.write_bytes(file.read_bytes())
    assert cli.main(["verify", str(alone)]) == 1
    assert "it runs, but parity is unproven" in capsys.readouterr().out
    assert cli.main(["export", str(finished_run), f"--output={file}"]) == 1
    assert "exists; pass --overwrite" in capsys.readouterr().err


def test_mistakes(finished_run, tmp_path, capsys):
    for arguments, code, message in (
        (["export"], 2, "export: the following arguments are required: RUN"),
        (["export", tmp_path], 1, "is neither a SavedModel nor a run"),
        (
            ["export", finished_run, "--quantise=int8"],
            2,
            "no option --quantise; did you mean --quantize? The options are --output, --quantize",
        ),
        (["export", finished_run, f"--output={tmp_path}/m.onnx", "--quantize=int8"], 2, "are for .tflite files"),
        (
            ["verify", finished_run, "--gold=x"],
            2,
            "no option --gold; did you mean --golden? The options are --golden, --native",
        ),
    ):
        found = cli.main(list(map(str, arguments)))
        errors = capsys.readouterr().err
        assert (found, message in errors) == (code, True), errors
    assert os.listdir(tmp_path) == []
