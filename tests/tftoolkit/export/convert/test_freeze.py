"""SavedModels of TensorFlow 1 with ref variables, to every target; compared with what TensorFlow 1 computed."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export

v1 = tf.compat.v1
X = np.random.default_rng(0).standard_normal([5, 40]).astype(np.float32)


def write(path, signatures=1, change=False):
    """Variables that training has changed since their initialisers; returns what the session computes."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 40], "x")
        start = np.random.default_rng(1).standard_normal([40, 30]).astype(np.float32)
        weight = v1.get_variable("w", initializer=start, use_resource=False)
        bias = v1.get_variable("b", initializer=np.zeros(30, np.float32), use_resource=False)
        calls = v1.get_variable("calls", initializer=0, use_resource=False)
        y = tf.nn.relu(x @ weight + bias)
        if change:
            with tf.control_dependencies([v1.assign_add(calls, 1)]):
                y = tf.identity(y)
        loss = tf.reduce_sum(tf.square(y))
        v1.train.GradientDescentOptimizer(0.1).minimize(
            loss, v1.train.get_or_create_global_step()
        )  # stays in the graph
        session.run(v1.global_variables_initializer())
        session.run([v1.assign_add(bias, tf.ones([30])), v1.assign(weight, 2 * weight)])
        made = {"serving_default": v1.saved_model.predict_signature_def({"x": x}, {"y": y})}
        if signatures > 1:
            made["twice"] = v1.saved_model.predict_signature_def({"x": x}, {"z": 2 * y})
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=made)
        builder.save()
        return session.run(y, {x: X})


@pytest.mark.parametrize("mode", [None, *(pytest.param(m, marks=pytest.mark.slow) for m in ("float16", "int8"))])
def test_e5_ref_variables_to_tflite(tmp_path, mode):
    expected = write(tmp_path / "m", signatures=2)
    real = {name: [{"x": X[i % 5 :][:1]} for i in range(100)] for name in ("serving_default", "twice")}
    export.tflite(tmp_path / "m", tmp_path / "m.tflite", quantize=mode, representative=real)
    runner = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("twice")
    found = np.concatenate([runner(x=row[None])["z"] for row in X])
    np.testing.assert_allclose(found, 2 * expected, atol=1e-4 if mode is None else 0.02 * 2 * expected.max())


def test_e5_ref_variables_to_onnx(tmp_path):
    expected = write(tmp_path / "m")
    export.onnx(tmp_path / "m", tmp_path / "m.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": X})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert "VariableV2" in (tmp_path / "m" / "saved_model.pb").read_bytes().decode("latin-1")  # it stays as it was


@pytest.mark.slow
def test_e5_ref_variables_to_a_saved_model_and_verify(tmp_path):
    expected = write(tmp_path / "m")
    export.saved_model(tmp_path / "m", tmp_path / "again")
    found = tf.saved_model.load(str(tmp_path / "again")).signatures["serving_default"](x=tf.constant(X))["y"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    export.tflite(tmp_path / "m", tmp_path / "m.tflite", quantize="float16")
    export.verify(tmp_path / "m.tflite", golden=tmp_path / "m")


def test_e5_a_ref_variable_that_changes_is_refused(tmp_path):
    write(tmp_path / "m", change=True)
    with pytest.raises(export.ExportError, match=r"a signature changes the variable calls \(AssignAdd\)"):
        export.onnx(tmp_path / "m", tmp_path / "m.onnx")
