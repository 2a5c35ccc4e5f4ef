"""Ops that TensorFlow's converter gets wrong are right in our TFLite files, or the file is refused."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export

X = np.float32([np.inf, -np.inf, np.nan, 1.0, -2.0, 0.0, 3.4e38, 1e-40])
SPEC = [tf.TensorSpec([None], tf.float32, "x")]


def asked(x):
    """Everything that is made of the three questions."""
    inf, nan, finite = tf.math.is_inf(x), tf.math.is_nan(x), tf.math.is_finite(x)
    return {
        "inf": inf, "nan": nan, "finite": finite,
        "without": tf.where(inf, 0.0, x), "only": tf.where(inf, x, 0.0), "clean": tf.where(finite, x, -1.0),
        "count": tf.reduce_sum(tf.cast(inf, tf.int32)),
    }  # fmt: skip


@pytest.mark.parametrize("mode", [None, pytest.param("float16", marks=pytest.mark.slow)])
def test_e4_infinities_in_tflite(tmp_path, mode):
    """Compared with TensorFlow; float16 has constants to store, of which infinity must not be one."""
    matrix = tf.Variable(np.eye(8, dtype=np.float32))
    function = asked if mode is None else lambda x: asked(x) | {"y": tf.reshape(x, [-1, 8]) @ matrix}
    spec = SPEC if mode is None else [tf.TensorSpec([8], tf.float32, "x")]
    report = export.tflite(tf.Module(), tmp_path / "m", signatures={"f": (function, spec)}, quantize=mode)
    assert {(c.error, c.bound) for c in report.rows[0].checks if c.inputs in ("inf", "nan")} == {(0.0, 0.0)}
    found = Interpreter(str(tmp_path / "m")).get_signature_runner()(x=X)
    for name, value in asked(tf.constant(X)).items():
        np.testing.assert_array_equal(found[name], value, name)


def test_e4_infinities_in_onnx(tmp_path):
    """is_finite is wrong for NaN in tf2onnx's files, so it is left out or the file refused."""
    keep = ("inf", "nan", "without", "only", "count")
    signatures = {"f": (lambda x: {name: asked(x)[name] for name in keep}, SPEC)}
    export.onnx(tf.Module(), tmp_path / "m.onnx", signatures=signatures)
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(list(keep), {"x": X})
    for name, value in zip(keep, found, strict=True):
        np.testing.assert_array_equal(value, asked(tf.constant(X))[name], name)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: {"y": tf.where(tf.abs(x) == np.inf, 0.0, x)},
        pytest.param(lambda x: {"y": tf.abs(x) == np.inf}, marks=pytest.mark.slow),
        pytest.param(lambda x: {"y": tf.where(tf.abs(x) == np.inf, x, 0.0)}, marks=pytest.mark.slow),
    ],
)
def test_e4_comparing_with_infinity_is_refused(tmp_path, function):
    """In LiteRT no number equals infinity."""
    with pytest.raises(export.ExportError, match=r"parity .* on inf inputs .* input_ranges"):
        export.tflite(tf.Module(), tmp_path / "m", signatures={"f": (function, SPEC)})
    export.tflite(tf.Module(), tmp_path / "m", signatures={"f": (function, SPEC)}, input_ranges={"x": (-9, 9)})


def test_e4_verify_of_a_foreign_file(tmp_path):
    """As the converter writes it, is_inf is False for every number."""
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": tf.where(tf.math.is_inf(x), 0.0, x)}, input_signature=SPEC)
    tf.saved_model.save(module, str(tmp_path / "golden"), {"serving_default": module.f})
    content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "golden")).convert()
    assert Interpreter(model_content=content).get_signature_runner()(x=X)["y"][0] == np.inf
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(export.ExportError, match=r"parity .* on inf inputs"):
        export.verify(tmp_path / "m.tflite", golden=tmp_path / "golden")


def test_e4_what_survives_infinity(tmp_path):
    """Functions with limits, which TensorFlow takes at infinity: right files are accepted."""

    def function(x):
        names = ("sigmoid", "tanh", "relu", "relu6", "exp")
        found = {name: getattr(tf.nn, name, None) or getattr(tf.math, name) for name in names}
        return {name: f(x) for name, f in found.items()} | {
            "clipped": tf.clip_by_value(x, -1.0, 1.0),
            "softmax": tf.nn.softmax(x[None]),
        }

    for exporter, name in ((export.tflite, "m.tflite"), (export.onnx, "m.onnx")):
        checks = exporter(tf.Module(), tmp_path / name, signatures={"f": (function, SPEC)}).rows[0].checks
        assert "inf" in {check.inputs for check in checks}
