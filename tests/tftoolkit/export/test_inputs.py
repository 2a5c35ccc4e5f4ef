"""Each kind of model that can be exported, to each target: one or several signatures, free or fixed batch."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export

X = np.random.default_rng(0).standard_normal([3, 6]).astype(np.float32)
SPEC = tf.TensorSpec([None, 6], tf.float32, "features")


def functional(library):
    inputs = library.Input([6], name="features")
    hidden = library.layers.BatchNormalization()(library.layers.Dense(8, activation="gelu")(inputs))
    return library.Model(inputs, {"score": library.layers.Dense(3)(hidden), "hidden": hidden})


def subclassed(library):
    class Model(library.Model):
        def __init__(self):
            super().__init__()
            self.hidden = library.layers.Dense(8, activation="relu")
            self.dropout = library.layers.Dropout(0.5)
            self.score = library.layers.Dense(3)

        def call(self, features, training=False):
            hidden = self.hidden(features)
            return {"score": self.score(self.dropout(hidden, training=training)), "hidden": hidden}

    model = Model()
    model(X)
    return model


class Module(tf.Module):
    def __init__(self):
        generator = tf.random.Generator.from_seed(0)
        self.weight = tf.Variable(generator.normal([6, 8]))
        self.last = tf.Variable(generator.normal([8, 3]))

    @tf.function(input_signature=[SPEC])
    def __call__(self, features):
        hidden = tf.nn.relu(features @ self.weight)
        return {"score": hidden @ self.last, "hidden": hidden}


MODELS = {
    "tf.Module": (Module, False),
    "Keras 3, functional": (lambda: functional(keras), False),
    "Keras 3, subclassed": (lambda: subclassed(keras), True),
    "tf_keras, functional": (lambda: functional(tf_keras), False),
    "tf_keras, subclassed": (lambda: subclassed(tf_keras), True),
}


@pytest.mark.parametrize(
    "kind",
    [
        "Keras 3, functional",
        "tf_keras, subclassed",
        pytest.param("tf.Module", marks=pytest.mark.slow),
        pytest.param("Keras 3, subclassed", marks=pytest.mark.slow),
        pytest.param("tf_keras, functional", marks=pytest.mark.slow),
    ],
)
def test_a_model_to_every_target(tmp_path, kind):
    make, needs_signature = MODELS[kind]
    model = make()
    signatures = {"serving_default": (model, [SPEC])} if needs_signature else None
    export.saved_model(model, tmp_path / "saved", signatures=signatures)
    export.tflite(model, tmp_path / "m.tflite", signatures=signatures)
    export.onnx(tmp_path / "saved", tmp_path / "m.onnx")
    export.tflite(tmp_path / "saved", tmp_path / "again.tflite")
    expected = {name: np.asarray(value) for name, value in model(X).items()}
    loaded = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    lite = [Interpreter(str(tmp_path / name)) for name in ("m.tflite", "again.tflite")]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    found = [
        loaded(features=tf.constant(X)),
        *(interpreter.get_signature_runner()(features=X) for interpreter in lite),
        dict(zip(["hidden", "score"], session.run(["hidden", "score"], {"features": X}), strict=True)),
    ]
    for outputs in found:
        for name, value in expected.items():
            np.testing.assert_allclose(outputs[name], value, atol=2e-5)


@pytest.mark.parametrize(
    "library", [keras, pytest.param(tf_keras, marks=pytest.mark.slow)], ids=["Keras 3", "tf_keras"]
)
def test_saved_models_that_others_wrote(tmp_path, library):
    model = functional(library)
    model.export(str(tmp_path / "exported"))
    tf.saved_model.save(Module(), str(tmp_path / "saved"))
    for folder in ("exported", "saved"):
        rows = export.tflite(tmp_path / folder, tmp_path / f"{folder}.tflite").rows
        assert rows[0].signatures["serving_default"]["inputs"] == ["features: float32[None, 6]"]


def test_signatures_with_free_and_fixed_batch(tmp_path):
    """One file, three signatures, one set of weights."""
    model = Module()
    signatures = {
        "free": (model, [SPEC]),
        "one": (model, [tf.TensorSpec([1, 6], tf.float32, "features")]),
        "hidden": (
            lambda features: tf.nn.relu(features @ model.weight),
            [tf.TensorSpec([4, 6], tf.float32, "features")],
        ),
    }
    for exporter, name in ((export.tflite, "m.tflite"), (export.saved_model, "saved")):
        row = exporter(model, tmp_path / name, signatures=signatures).rows[0]
        assert row.signatures == {
            "free": {
                "inputs": ["features: float32[None, 6]"],
                "outputs": ["hidden: float32[None, 8]", "score: float32[None, 3]"],
            },
            "hidden": {"inputs": ["features: float32[4, 6]"], "outputs": ["output_0: float32[4, 8]"]},
            "one": {
                "inputs": ["features: float32[1, 6]"],
                "outputs": ["hidden: float32[1, 8]", "score: float32[1, 3]"],
            },
        }
        assert {check.signature for check in row.checks} == set(signatures)


@pytest.mark.slow
@pytest.mark.parametrize("library", [keras, tf_keras], ids=["Keras 3", "tf_keras"])
def test_a_recurrent_layer(tmp_path, library):
    """Unrolled or as a loop it is right at every call; what is refused says what to do."""
    specs = [tf.TensorSpec([1, 5, 6], tf.float32, "features")]

    def lstm(**settings):
        return library.Sequential([library.Input([5, 6], name="features"), library.layers.LSTM(7, **settings)])

    unrolled = lstm(unroll=True)
    export.tflite(unrolled, tmp_path / "m", signatures={"serving_default": (unrolled, specs)})
    loop = lstm()
    with pytest.raises(export.ExportError, match=r"convert failed: .* give fixed shapes"):
        export.tflite(loop, tmp_path / "free")
    export.onnx(loop, tmp_path / "free.onnx")
    fixed = {"serving_default": (loop, specs)}
    if library is keras:
        export.tflite(loop, tmp_path / "fixed", signatures=fixed)
    else:  # fuses it
        with pytest.raises(export.ExportError, match=r"keeps its state .* unroll=True"):
            export.tflite(loop, tmp_path / "fixed", signatures=fixed)
