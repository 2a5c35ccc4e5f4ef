"""The proof beside a file: repeated without TensorFlow, and what it notices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export
from tftoolkit.export.proof import golden

ROOT = Path(__file__).resolve().parents[4]


class Dense(tf.Module):
    def __init__(self):
        self.weight = tf.Variable(tf.random.Generator.from_seed(0).normal([6, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, 6], tf.float32, "x")])
    def __call__(self, x):
        return {"y": tf.nn.relu(x @ self.weight), "largest": tf.argmax(x @ self.weight, -1)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    model = Dense()
    real = [{"x": np.random.default_rng(0).standard_normal([100, 6]).astype(np.float32)}]
    export.tflite(model, folder / "float.tflite", representative=real)
    export.tflite(model, folder / "int8.tflite", quantize="int8", integer_io=True, representative=real)
    export.onnx(model, folder / "m.onnx", representative=real)
    export.saved_model(model, folder / "saved", representative=real)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.slow
def test_what_lies_beside(exported):
    proof = json.loads((exported / "m.onnx.proof.json").read_text())
    assert proof["file_sha256"] == golden.checksum(exported / "m.onnx")
    assert proof["signatures"]["serving_default"]["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": [None, 6], "stored": None}
    ]
    assert {case["kind"] for case in proof["cases"]} == {"real", "random", "zeros", "large"}
    assert proof["measured"]["latency"]["1"]["median"] > 0
    with np.load(exported / "m.onnx.golden.npz") as arrays:  # no pickle
        x, y = arrays["0/inputs/x"], arrays["0/outputs/y"]
    np.testing.assert_allclose(y, np.maximum(x @ Dense().weight.numpy(), 0), atol=1e-5)
    assert sum(file.stat().st_size for file in exported.glob("*.golden.npz")) < 100_000


@pytest.mark.parametrize("file", ["float.tflite", "int8.tflite", "m.onnx", "saved"])
def test_again(exported, file):
    """With the bounds and outputs of then."""
    row = export.verify(exported / file).rows[0]
    stored = json.loads((exported / f"{file}.proof.json").read_text())["measured"]["checks"]
    then = {(c["signature"], c["tensor"], c["inputs"]): c for c in stored if c["inputs"] not in ("nan", "inf")}
    now = {(c.signature, c.tensor, c.inputs): c for c in row.checks}
    assert now.keys() == then.keys()
    assert all(check.bound == then[key]["bound"] for key, check in now.items())


@pytest.mark.parametrize("file", ["float.tflite", pytest.param("int8.tflite", marks=pytest.mark.slow), "m.onnx"])
def test_where_tensorflow_cannot_be_imported(exported, file, tmp_path):
    """And nothing else but numpy and the file's own runtime is."""
    hidden = ["tensorflow", "keras", "tf_keras", "absl", "onnx", "tf2onnx", "jax", "matplotlib", "scipy"]
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {hidden}:\n"
        "            raise ModuleNotFoundError(f'{name} is hidden', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", "import tensorflow"], env=environment, capture_output=True).returncode
    done = subprocess.run(
        [sys.executable, "-m", "tftoolkit", "verify", str(exported / file)],
        env=environment, cwd="/", capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "computes the same as the golden outputs stored beside it: 8 checks" in done.stdout


@pytest.mark.slow
def test_in_an_environment_with_only_the_runtime(exported, tmp_path):
    """A fresh virtual environment: the wheel without its dependencies, numpy and ai-edge-litert."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(wheel, check=True)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "--no-deps", *tmp_path.glob("tftoolkit-*.whl")], check=True)
    subprocess.run([*install, "numpy", "ai-edge-litert"], check=True)
    for file in ("float.tflite", "int8.tflite"):
        command = [tmp_path / "venv" / "bin" / "tftoolkit", "verify", exported / file]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "8 checks, each within its bound" in done.stdout
    (tmp_path / "damaged.tflite").write_bytes((exported / "float.tflite").read_bytes()[:-4] + b"\0\0\0\1")
    for suffix in (golden.ARRAYS, golden.PROOF):
        shutil.copy(exported / f"float.tflite{suffix}", tmp_path / f"damaged.tflite{suffix}")
    done = subprocess.run([*command[:2], tmp_path / "damaged.tflite"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "golden failed: damaged.tflite has SHA-256" in done.stderr


# --- What it notices


@pytest.mark.parametrize("file", ["float.tflite", "m.onnx"])
def test_one_byte_anywhere(copy, file):
    content = (copy / file).read_bytes()
    for position in np.random.default_rng(0).integers(0, len(content), 20):
        changed = bytearray(content)
        changed[position] ^= 1
        (copy / file).write_bytes(changed)
        with pytest.raises(export.ExportError, match=r"golden failed: .*another file"):
            export.verify(copy / file)


def test_a_file_in_the_saved_model(copy):
    (copy / "saved" / "assets" / "extra.txt").parent.mkdir(exist_ok=True)
    (copy / "saved" / "assets" / "extra.txt").write_text("new")
    with pytest.raises(export.ExportError, match=r"golden failed: saved has SHA-256 .*another file"):
        export.verify(copy / "saved")


def test_changed_arrays_and_a_changed_proof(copy):
    arrays = copy / "float.tflite.golden.npz"
    arrays.write_bytes(arrays.read_bytes()[:-1])
    with pytest.raises(export.ExportError, match="stored inputs and outputs were changed"):
        export.verify(copy / "float.tflite")
    proof = copy / "m.onnx.proof.json"
    text = proof.read_text()
    proof.write_text(text[: len(text) // 2])
    with pytest.raises(export.ExportError, match=r"m\.onnx\.proof\.json is damaged"):
        export.verify(copy / "m.onnx")
    proof.write_text(text.replace('"version": 3', '"version": 4'))
    with pytest.raises(export.ExportError, match=r"is of version 4; this reads \(1, 2, 3\)"):
        export.verify(copy / "m.onnx")
    (copy / "int8.tflite.golden.npz").unlink()
    with pytest.raises(export.ExportError, match="is damaged"):
        export.verify(copy / "int8.tflite")


def test_a_proof_of_an_older_version_is_read(copy):
    """Before version 3 inputs and outputs were lists of names, and each call had its own arrays."""
    arrays, proof = copy / "float.tflite.golden.npz", copy / "float.tflite.proof.json"
    told = json.loads(proof.read_text())
    with np.load(arrays) as stored:
        written = {
            f"{i}/{side}/{name}": stored[place]
            for i, case in enumerate(told["cases"])
            for side in ("inputs", "outputs")
            for name, place in case[side].items()
        }
    np.savez_compressed(arrays, **written)
    told |= {"version": 2, "golden_sha256": golden.checksum(arrays)}
    for case in told["cases"]:
        case |= {side: list(case[side]) for side in ("inputs", "outputs")}
    proof.write_text(json.dumps(told))
    assert len(export.verify(copy / "float.tflite").rows[0].checks) == 8


def test_equal_arrays_are_stored_once(tmp_path):
    """A table of a MB goes with every call on integers; text and shape count, too."""
    table = np.random.default_rng(0).standard_normal([250, 1000]).astype(np.float32)
    specs = [tf.TensorSpec(table.shape, tf.float32, "table"), tf.TensorSpec([3], tf.int32, "rows")]
    ranges = {"rows": (0, 249)}
    signatures = {"f": (lambda table, rows: {"y": tf.reduce_sum(tf.gather(table, rows), -1)}, specs)}
    export.saved_model(tf.Module(), tmp_path / "m", signatures=signatures, input_ranges=ranges)
    kinds = {case["kind"] for case in json.loads((tmp_path / "m.proof.json").read_text())["cases"]}
    assert {"0..9", "0..255", "limits"} <= kinds
    with np.load(tmp_path / "m.golden.npz") as arrays:
        tables = [name for name in arrays if name.endswith("/inputs/table")]
    assert len(tables) <= 6  # one of the integers, one each of random (two sizes), zeros, large and NaN
    export.verify(tmp_path / "m")


def test_another_program_that_was_given_the_right_checksums(copy):
    """The numbers decide: checksums alone would accept it."""
    model = Dense()
    model.weight.assign(model.weight * 1.001)
    export.tflite(model, copy / "other.tflite")
    other = json.loads((copy / "other.tflite.proof.json").read_text())["file_sha256"]
    proof = json.loads((copy / "float.tflite.proof.json").read_text()) | {"file_sha256": other}
    (copy / "float.tflite.proof.json").write_text(json.dumps(proof))
    shutil.copy(copy / "other.tflite", copy / "float.tflite")
    with pytest.raises(export.ExportError, match="parity failed at signature 'serving_default', tensor 'y'"):
        export.verify(copy / "float.tflite")


def test_overwriting_replaces_the_proof(copy):
    model = Dense()
    model.weight.assign(-model.weight)
    with pytest.raises(FileExistsError):
        export.tflite(model, copy / "float.tflite")
    export.verify(copy / "float.tflite")
    export.tflite(model, copy / "float.tflite", overwrite=True)
    export.verify(copy / "float.tflite", golden=model)
    export.verify(copy / "float.tflite")


def test_texts_and_bfloat16_are_stored_too(tmp_path):
    weight = tf.Variable(tf.cast(tf.random.Generator.from_seed(0).normal([8, 8]), tf.bfloat16))
    specs = [tf.TensorSpec([2, 8], tf.bfloat16, "x"), tf.TensorSpec([2], tf.string, "name")]
    signatures = {"f": (lambda x, name: {"y": x @ weight, "who": name + "!"}, specs)}
    export.saved_model(tf.Module(), tmp_path / "m", signatures=signatures)
    assert {check.tensor for check in export.verify(tmp_path / "m").rows[0].checks} == {"y", "who"}
