"""Nine ways in which TensorFlow's tools write a wrong file without a word, each with and without our gate.

"Without" runs the usual tool and shows that its result is wrong: where a later version mends it, that assertion fails
and the guard can be looked at again. "With" shows that ours refuses such a file, or writes a right one. What guards
against the slow ones has other, fast tests.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf2onnx.convert
import tf_keras
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import custom_ops, export
from tftoolkit.export import saved_models


def refused(folder: Path, content: bytes, golden, message: str, name: str = "planted.tflite") -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(export.ExportError, match=message):
        export.verify(folder / name, golden=golden)


def nothing_written(folder: Path, message: str, exporter, *arguments, **settings) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(export.ExportError, match=message):
        exporter(*arguments, folder / "empty" / "m.onnx", **settings)
    assert os.listdir(folder / "empty") == []


def run(file: Path | bytes, signature: str | None = None, **inputs):
    interpreter = Interpreter(model_content=file) if isinstance(file, bytes) else Interpreter(str(file))
    return interpreter.get_signature_runner(signature)(**inputs)


def converter(function, *specs, weights=()):
    holder = tf.Module()
    holder.weights = list(weights)
    return tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(function).get_concrete_function(*specs)], holder
    )


@pytest.mark.slow
def test_1_a_dropped_activation(tmp_path):
    """relu(x @ w) with a w that is no constant."""
    specs = [tf.TensorSpec([3, 4], tf.float32, "x"), tf.TensorSpec([4, 5], tf.float32, "w")]
    inputs = {"x": np.ones([3, 4], np.float32), "w": -np.ones([4, 5], np.float32)}

    def function(x, w):
        return {"y": tf.nn.relu(x @ w)}

    wrong = converter(function, *specs).convert()
    assert run(wrong, **inputs)["y"].max() == -4  # a relu is never negative

    signatures = {"serving_default": (function, specs)}
    export.saved_model(tf.Module(), tmp_path / "golden", signatures=signatures)
    refused(tmp_path, wrong, tmp_path / "golden", "parity failed at signature 'serving_default', tensor 'y'")
    export.tflite(tf.Module(), tmp_path / "right", signatures=signatures)
    assert run(tmp_path / "right", **inputs)["y"].max() == 0


def test_2_a_file_without_weights(tmp_path):
    """from_concrete_functions with a Keras 3 model."""
    model = keras.Sequential([keras.Input([6], name="x"), keras.layers.Dense(40), keras.layers.Dense(2)])
    spec = tf.TensorSpec([None, 6], tf.float32, "x")
    concrete = tf.function(lambda x: model(x, training=False)).get_concrete_function(spec)
    wrong = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model).convert()
    x = np.ones([1, 6], np.float32)
    assert not np.allclose(run(wrong, x=x)["output_0"], model(x), atol=0.1)  # NaN, or whatever lay there

    refused(tmp_path, wrong, model, r"structure failed: holds .* they were lost")
    export.tflite(model, tmp_path / "right")
    np.testing.assert_allclose(run(tmp_path / "right", x=x)["output_0"], model(x), atol=1e-5)


@pytest.mark.slow
def test_3_collapsed_signatures(tmp_path):
    """Functions of one name, from_concrete_functions."""
    spec = tf.TensorSpec([2], tf.float32, "x")
    made = [tf.function(lambda x, scale=scale: {"y": scale * x}).get_concrete_function(spec) for scale in (2.0, 3.0)]
    wrong = tf.lite.TFLiteConverter.from_concrete_functions(made, tf.Module()).convert()
    assert len(Interpreter(model_content=wrong).get_signature_list()) == 1  # one of two is gone

    signatures = dict(zip(("double", "triple"), made, strict=True))
    export.saved_model(tf.Module(), tmp_path / "golden", signatures=signatures)
    refused(tmp_path, wrong, tmp_path / "golden", "the file has signatures .* the model")
    export.tflite(tf.Module(), tmp_path / "right", signatures=signatures)
    x = np.ones([2], np.float32)
    assert run(tmp_path / "right", "double", x=x)["y"].tolist() == [2, 2]
    assert run(tmp_path / "right", "triple", x=x)["y"].tolist() == [3, 3]


def test_4_select_tf(tmp_path):
    """Converts; no Python runtime can run it."""
    spec = tf.TensorSpec([4, 4], tf.float32, "x")

    def function(x):
        return {"y": tf.random.poisson([], x)}

    wrong = converter(function, spec)
    wrong.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    content = wrong.convert()
    with pytest.raises(RuntimeError, match=r"Select TensorFlow op"):
        run(content, x=np.eye(4, dtype=np.float32))

    refused(tmp_path, content, None, "structure failed: ops FlexRandomPoissonV2 are not builtin")
    nothing_written(
        tmp_path, "convert failed: .*no builtin op for .*RandomPoissonV2", export.tflite, tf.Module(),
        signatures={"f": (function, [spec])},
    )  # fmt: skip


def test_5_an_unresolved_custom_op(tmp_path):
    """LiteRT.js resolves run() with garbage, the desktop's interpreter raises; the file looks like any other."""
    spec = tf.TensorSpec([2, 6], tf.float32, "x")
    gamma = tf.Variable(tf.ones([6]))

    def function(x):
        return {"y": custom_ops.rms_norm(x, gamma)}

    wrong = converter(function, spec, weights=[gamma])
    wrong.allow_custom_ops = True
    content = wrong.convert()
    with pytest.raises((RuntimeError, ValueError), match="custom op"):
        run(content, x=np.ones([2, 6], np.float32))

    refused(tmp_path, content, None, "structure failed: ops .*RmsNorm are not builtin")
    export.tflite(tf.Module(), tmp_path / "right", signatures={"f": (function, [spec])})
    np.testing.assert_allclose(run(tmp_path / "right", x=np.full([2, 6], 3, np.float32))["y"], 1, atol=1e-5)


def test_6_an_invalid_onnx_file(tmp_path):
    """tf2onnx logs the op that it does not know, and goes on."""
    spec = tf.TensorSpec([4], tf.float32, "x")

    def function(x):
        return {"y": tf.math.betainc(x, x, x)}

    model, _ = tf2onnx.convert.from_function(tf.function(function), [spec])
    assert "Betainc" in {node.op_type for node in model.graph.node}  # no such op in ONNX
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)

    refused(tmp_path, model.SerializeToString(), None, "structure failed: onnxruntime cannot open", "planted.onnx")
    nothing_written(
        tmp_path, "convert failed at signature 'f': ONNX has no op for Betainc", export.onnx, tf.Module(),
        signatures={"f": (function, [spec])},
    )  # fmt: skip


def test_7_a_stale_trace(tmp_path):
    """A tf.function traced before keeps what it was traced with, whatever a flag says at export."""
    mode = SimpleNamespace(export=False)
    spec = tf.TensorSpec([2, 6], tf.float32, "x")
    gamma = tf.Variable(tf.ones([6]))

    @tf.function
    def normalise(x):
        if mode.export:
            return x * tf.math.rsqrt(tf.reduce_mean(x**2, -1, keepdims=True) + 1e-6)
        return custom_ops.rms_norm(x, gamma)

    @tf.function
    def function(x):
        return {"y": normalise(x)}

    normalise(tf.ones([2, 6]))  # training
    mode.export = True
    holder = tf.Module()
    holder.gamma = gamma
    options = tf.saved_model.SaveOptions(namespace_whitelist=["TfToolkit"])
    tf.saved_model.save(holder, str(tmp_path / "wrong"), function.get_concrete_function(spec), options)
    assert "TfToolkit>RmsNorm" in saved_models.op_types(tmp_path / "wrong")  # the flag was ignored

    for source, signatures in ((tmp_path / "wrong", None), (tf.Module(), {"serving_default": (function, [spec])})):
        export.saved_model(source, tmp_path / "right", signatures=signatures, overwrite=True)
        assert not any(">" in op_type for op_type in saved_models.op_types(tmp_path / "right"))


def test_8_state_that_outlives_a_call(tmp_path):
    """The fused LSTM keeps its state: the first call is right, the next ones are not."""
    model = tf_keras.Sequential([tf_keras.Input([5, 6], name="x"), tf_keras.layers.LSTM(7)])
    spec = tf.TensorSpec([1, 5, 6], tf.float32, "x")
    x = np.random.default_rng(0).standard_normal([1, 5, 6]).astype(np.float32)
    content = converter(lambda x: {"y": model(x)}, spec, weights=model.variables).convert()
    runner = Interpreter(model_content=content).get_signature_runner()
    first, second = runner(x=x)["y"], runner(x=x)["y"]
    np.testing.assert_allclose(first, model(x), atol=1e-6)
    assert np.abs(first - second).max() > 1e-3

    refused(tmp_path, content, None, "structure failed: .*keeps its state from call to call")
    unrolled = tf_keras.Sequential([tf_keras.Input([5, 6], name="x"), tf_keras.layers.LSTM(7, unroll=True)])
    unrolled.set_weights(model.get_weights())
    export.tflite(unrolled, tmp_path / "right", signatures={"f": (lambda x: {"y": unrolled(x)}, [spec])})
    runner = Interpreter(str(tmp_path / "right")).get_signature_runner()
    for _ in range(2):
        np.testing.assert_allclose(runner(x=x)["y"], model(x), atol=1e-6)


@pytest.mark.slow
def test_9_a_saved_model_whose_weights_are_lost(tmp_path):
    """from_saved_model of a module that holds a Keras 3 model."""
    model = keras.Sequential([keras.Input([6], name="x"), keras.layers.Dense(400), keras.layers.Dense(2)])
    module = tf.Module()
    module.model = model
    spec = tf.TensorSpec([1, 6], tf.float32, "x")
    function = tf.function(lambda x: {"y": model(x)}, input_signature=[spec])
    folder = tmp_path / "saved"
    tf.saved_model.save(module, str(folder), {"serving_default": function})
    wrong = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"]).convert()
    assert len(wrong) < 4 * model.count_params()

    refused(tmp_path, wrong, folder, r"structure failed: holds .* they were lost")
    export.tflite(folder, tmp_path / "right")
    x = np.ones([1, 6], np.float32)
    np.testing.assert_allclose(run(tmp_path / "right", x=x)["y"], model(x), atol=1e-5)
