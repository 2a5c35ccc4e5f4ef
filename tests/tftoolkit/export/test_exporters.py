"""Files that are right: several models and formats, each run in its own runtime."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from sklearn.datasets import load_digits

from tftoolkit import export
from tftoolkit.export.runtimes import worker


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return (data.images / 16).astype(np.float32)[..., None], data.target


class Classifier(tf.Module):
    def __init__(self):
        generator = tf.random.Generator.from_seed(1)
        self.convolution = tf.Variable(generator.normal([3, 3, 1, 8]) * 0.3)
        self.bias = tf.Variable(tf.zeros([8]))
        self.dense = tf.Variable(generator.normal([4 * 4 * 8, 10]) * 0.1)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.float32, "image")])
    def __call__(self, image):
        hidden = tf.nn.relu(tf.nn.conv2d(image, self.convolution, 2, "SAME") + self.bias)
        logits = tf.reshape(hidden, [-1, 128]) @ self.dense
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "digit": tf.argmax(logits, -1)}


@pytest.fixture(scope="module")
def classifier(digits):
    images, labels = digits
    model = Classifier()
    optimizer = tf_keras.optimizers.Adam(1e-2)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x)["logits"]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    rng = np.random.default_rng(0)
    for _ in range(150):
        rows = rng.integers(0, 1400, 64)
        step(images[rows], labels[rows])
    return model


@pytest.fixture(scope="module")
def accuracy(digits):
    images, labels = digits
    return lambda predict: np.mean(predict({"image": images[1400:]})["digit"] == labels[1400:])


@pytest.fixture(scope="module")
def representative(digits):
    return lambda: ({"image": digits[0][start : start + 32]} for start in range(0, 1400, 32))


def files(folder: Path) -> list[str]:
    """Everything in a folder that is no proof; each of those has two files of proof beside it."""
    names = sorted(os.listdir(folder))
    proofs = {name for name in names if name.endswith((".golden.npz", ".proof.json"))}
    exported = [name for name in names if name not in proofs]
    assert proofs == {name + suffix for name in exported for suffix in (".golden.npz", ".proof.json")}
    return exported


def run(path: Path, inputs: dict, signature: str = "serving_default") -> dict:
    return Interpreter(str(path)).get_signature_runner(signature)(**inputs)


def test_three_formats_of_a_trained_classifier(tmp_path, classifier, accuracy, representative, digits):
    common = {"metric": accuracy, "max_drop": 0.02}
    report = (
        export.saved_model(classifier, tmp_path / "model", **common)
        + export.tflite(classifier, tmp_path / "float.tflite", **common)
        + export.tflite(classifier, tmp_path / "int8.tflite", quantize="int8", representative=representative, **common)
    )
    assert files(tmp_path) == ["float.tflite", "int8.tflite", "model"]
    assert [row.format for row in report.rows] == ["SavedModel", "TFLite float32", "TFLite int8"]
    assert [row.golden_metric for row in report.rows] == [report.rows[0].metric] * 3
    assert report.rows[0].metric > 0.85
    for row in report.rows:
        assert row.metric == pytest.approx(row.golden_metric, abs=0.02)
        assert all(check.bound is None or check.error <= check.bound for check in row.checks)
        assert {check.tensor for check in row.checks} == {"logits", "probabilities", "digit"}
    saved, float32, int8 = report.rows
    assert set(float32.latency) == {1, 2}
    assert int8.size < float32.size < saved.size
    assert float32.size == (tmp_path / "float.tflite").stat().st_size
    assert float32.worst.error < 1e-4 < int8.worst.error

    # The numbers are those of the files, not of some other object: run them by hand.
    images = digits[0][:7]
    expected = classifier(images)["logits"].numpy()
    assert np.abs(run(tmp_path / "float.tflite", {"image": images})["logits"] - expected).max() < 1e-4
    quantised = run(tmp_path / "int8.tflite", {"image": images})["logits"]
    assert quantised.dtype == np.float32
    assert np.abs(quantised - expected).max() < 0.1 * np.abs(expected).max()
    loaded = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    np.testing.assert_array_equal(loaded(image=tf.constant(images))["logits"], expected)

    lines = str(report).splitlines()
    assert len(lines) == 4
    assert "int8.tflite" in lines[3]
    rows = json.loads(report.to_json())["rows"]
    assert rows[1]["latency"]["1"]["median"] > 0
    assert len(rows[2]["checks"]) == 3 * 5

    again = export.verify(tmp_path / "float.tflite", golden=tmp_path / "model", **common)
    assert again.rows[0].metric == float32.metric
    (tmp_path / "float.tflite.proof.json").unlink()
    assert export.verify(tmp_path / "float.tflite").rows[0].checks == ()  # nothing to compare with


def test_any_batch_size_of_a_free_dimension(tmp_path, classifier, digits):
    export.tflite(classifier, tmp_path / "m.tflite")
    for batch in (1, 2, 33):
        outputs = run(tmp_path / "m.tflite", {"image": digits[0][:batch]})
        np.testing.assert_allclose(outputs["logits"], classifier(digits[0][:batch])["logits"], atol=1e-4)


def test_relative_paths_after_a_change_of_folder(tmp_path, monkeypatch):
    """The child that converts lives in another folder."""
    worker.call(os.getcwd)
    monkeypatch.chdir(tmp_path)
    signatures = {"f": (tf.nn.relu, [tf.TensorSpec([2, 4], tf.float32, "x")])}
    export.tflite(tf.Module(), "m.tflite", signatures=signatures)
    export.onnx(tf.Module(), "m.onnx", signatures=signatures)
    assert files(tmp_path) == ["m.onnx", "m.tflite"]


def test_signatures_keep_names_and_do_not_collapse(tmp_path):
    """Functions of one name must not end as one signature (from_concrete_functions does that)."""
    model = tf.Module()
    model.weight = tf.Variable(tf.random.normal([4, 3]))

    def make(scale):
        def function(zeta, alpha):
            return {"sum": scale * (zeta + alpha) @ model.weight, "product": zeta * alpha}

        return function

    specs = [tf.TensorSpec([2, 4], tf.float32, "zeta"), tf.TensorSpec([2, 4], tf.float32, "alpha")]
    signatures = {"once": (make(1.0), specs), "twice": tf.function(make(2.0)).get_concrete_function(*specs)}
    export.tflite(model, tmp_path / "m.tflite", signatures=signatures)
    interpreter = Interpreter(str(tmp_path / "m.tflite"))
    order = {"inputs": ["alpha", "zeta"], "outputs": ["product", "sum"]}
    assert interpreter.get_signature_list() == {"once": order, "twice": order}
    inputs = {"zeta": np.ones([2, 4], np.float32), "alpha": np.full([2, 4], 2, np.float32)}
    once, twice = (run(tmp_path / "m.tflite", inputs, name)["sum"] for name in ("once", "twice"))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    np.testing.assert_allclose(once, 3 * tf.reduce_sum(model.weight, 0)[None] + tf.zeros([2, 1]), rtol=1e-5)


def test_activation_after_a_product_of_two_inputs(tmp_path):
    """TensorFlow's converter drops this relu unless told to unfold batch matmul."""
    specs = [tf.TensorSpec([3, 4], tf.float32, "x"), tf.TensorSpec([4, 5], tf.float32, "w")]
    export.tflite(tf.Module(), tmp_path / "m.tflite", signatures={"f": (lambda x, w: tf.nn.relu(x @ w), specs)})
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal([3, 4], np.float32), rng.standard_normal([4, 5], np.float32)
    outputs = run(tmp_path / "m.tflite", {"x": x, "w": w}, "f")
    np.testing.assert_allclose(outputs["output_0"], np.maximum(x @ w, 0), atol=1e-6)


@pytest.mark.parametrize("library", [keras, pytest.param(tf_keras, marks=pytest.mark.slow)], ids=["keras3", "tf_keras"])
def test_functional_keras_models_need_no_signature(tmp_path, library):
    layers = library.layers
    left, right = library.Input([6], name="left"), library.Input([6], name="right")
    hidden = layers.Dense(8, activation="relu")(layers.Concatenate()([right, left]))
    hidden = layers.Dropout(0.5)(layers.BatchNormalization()(hidden))
    model = library.Model({"left": left, "right": right}, {"score": layers.Dense(2)(hidden)})
    model.layers[-1].set_weights([np.random.default_rng(0).standard_normal([8, 2]), np.array([0.5, -1])])
    report = export.tflite(model, tmp_path / "m.tflite") + export.saved_model(model, tmp_path / "sm")
    assert report.rows[0].size > 4 * (12 * 8 + 8 * 2)  # bytes: the weights are really inside
    rng = np.random.default_rng(1)
    inputs = {"left": rng.standard_normal([3, 6], np.float32), "right": rng.standard_normal([3, 6], np.float32)}
    expected = model(inputs, training=False)["score"]
    np.testing.assert_allclose(run(tmp_path / "m.tflite", inputs)["score"], expected, atol=1e-5)


@pytest.mark.slow
def test_sequential_and_subclassed_keras_models(tmp_path):
    sequential = keras.Sequential([keras.Input([4], name="features"), keras.layers.Dense(3, activation="softmax")])
    export.tflite(sequential, tmp_path / "sequential.tflite")

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Subclassed()
    with pytest.raises(ValueError, match=r"signatures is None and Subclassed .*tf\.TensorSpec"):
        export.tflite(model, tmp_path / "m.tflite")
    specs = [tf.TensorSpec([None, 4], tf.float32, "features")]
    with pytest.raises(export.ExportError, match="2 trainable variables are made only now, with random values"):
        export.tflite(model, tmp_path / "m.tflite", signatures={"serving_default": (model, specs)})
    model(np.zeros([1, 4], np.float32))
    export.tflite(model, tmp_path / "m.tflite", signatures={"serving_default": (model, specs)})
    x = np.random.default_rng(0).standard_normal([5, 4], np.float32)
    np.testing.assert_allclose(run(tmp_path / "m.tflite", {"features": x})["output_0"], model(x), atol=1e-5)


@pytest.mark.slow
def test_integer_inputs_lookup_table_and_half_precision(tmp_path):
    model = tf.Module()
    model.embedding = tf.Variable(tf.random.normal([50, 8]))
    initializer = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([3, 4], tf.int64))
    model.table = tf.lookup.StaticHashTable(initializer, default_value=-1)

    def embed(ids):
        return {"mean": tf.reduce_mean(tf.gather(model.embedding, ids), 1)}

    ids = [{"ids": np.random.default_rng(0).integers(0, 50, [4, 7]).astype(np.int32)}]
    signatures = {"embed": (embed, [tf.TensorSpec([None, 7], tf.int32, "ids")])}
    export.tflite(model, tmp_path / "m.tflite", signatures=signatures, representative=ids)

    signatures["look_up"] = (lambda key: {"index": model.table.lookup(key)}, [tf.TensorSpec([2], tf.string, "key")])
    keys = [{"key": np.array(["b", "c"])}]
    export.saved_model(model, tmp_path / "sm", signatures=signatures, representative={"embed": ids, "look_up": keys})
    loaded = tf.saved_model.load(str(tmp_path / "sm")).signatures["look_up"]
    assert loaded(key=tf.constant(["b", "c"]))["index"].numpy().tolist() == [4, -1]

    weight = tf.Variable(tf.cast(tf.random.normal([8, 8]), tf.bfloat16))
    half = (lambda x: {"y": tf.cast(tf.cast(x, tf.bfloat16) @ weight, tf.float32)}, [tf.TensorSpec([2, 8], name="x")])
    row = export.saved_model(tf.Module(), tmp_path / "half", signatures={"f": half}).rows[0]
    assert row.worst.bound > 1e-3  # bfloat16 has 8 bits: a float32 bound would be wrong


def test_a_model_that_counts_its_calls(tmp_path):
    """State starts anew for each runtime, so a model that changes its variables can be proven too."""
    model = tf.Module()
    model.calls = tf.Variable(0.0)
    specs = [tf.TensorSpec([2], tf.float32, "x")]
    export.saved_model(
        model, tmp_path / "sm", signatures={"f": (lambda x: {"y": x * model.calls.assign_add(1.0)}, specs)}
    )
    loaded = tf.saved_model.load(str(tmp_path / "sm")).signatures["f"]
    assert [float(loaded(x=tf.ones([2]))["y"][0]) for _ in range(3)] == [1, 2, 3]


def test_destination_exists(tmp_path, classifier):
    destination = tmp_path / "m.tflite"
    destination.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.tflite(classifier, destination)
    assert destination.read_text() == "precious"
    export.tflite(classifier, destination, overwrite=True)
    assert destination.read_bytes()[4:8] == b"TFL3"

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export.saved_model(classifier, folder)
    export.saved_model(classifier, folder, overwrite=True)
    assert not (folder / "old").exists()
    export.verify(folder, golden=classifier)
    assert files(tmp_path) == ["m.tflite", "model"]
