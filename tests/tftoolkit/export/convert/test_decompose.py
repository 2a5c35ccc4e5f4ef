"""Custom ops in exported files: replaced by their references, or kept with their library beside the file."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import custom_ops, export
from tftoolkit.custom_ops.engine import ops, schema_parser
from tftoolkit.export import saved_models
from tftoolkit.export.convert import decompose, library
from tftoolkit.export.convert.trace import trace


class Model(tf.Module):
    """rms_norm in a plain function, a nested and a jitted one, a loop body, a branch and a gradient."""

    def __init__(self):
        generator = tf.random.Generator.from_seed(0)
        self.weight = tf.Variable(generator.normal([6, 6]))
        self.gamma = tf.Variable(generator.uniform([6]) + 0.5)

    @tf.function
    def nested(self, x):
        return custom_ops.rms_norm(x, self.gamma, epsilon=1.0)

    @tf.function(jit_compile=True)
    def jitted(self, x):
        return custom_ops.rms_norm(tf.tanh(x), self.gamma)

    def infer(self, x):
        hidden = self.nested(x @ self.weight)
        looped = tf.while_loop(
            lambda i, h: i < 3, lambda i, h: (i + 1, custom_ops.rms_norm(h + x, self.gamma)), [0, hidden]
        )[1]
        branch = tf.cond(tf.reduce_sum(x) > 0, lambda: custom_ops.rms_norm(x, self.gamma), lambda: x)
        return {"hidden": hidden, "looped": looped, "branch": branch, "jitted": self.jitted(x)}

    def gradients(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.tanh(self.nested(x @ self.weight)))
        weight, gamma = tape.gradient(loss, [self.weight, self.gamma])
        return {"loss": loss, "weight": weight, "gamma": gamma}

    def signatures(self):
        return {
            "infer": (self.infer, [tf.TensorSpec([None, 6], tf.float32, "x")]),
            "gradients": (self.gradients, [tf.TensorSpec([4, 6], tf.float32, "x")]),
        }


@pytest.fixture(scope="module")
def model():
    return Model()


X = np.random.default_rng(0).standard_normal([4, 6]).astype(np.float32)


def in_fresh_process(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_decomposed_and_native_in_fresh_processes(tmp_path, model):
    report = export.saved_model(model, tmp_path / "plain", signatures=model.signatures())
    report += export.saved_model(model, tmp_path / "native", signatures=model.signatures(), ops="native")
    assert [row.format for row in report.rows] == ["SavedModel", "SavedModel, native"]
    assert not any(">" in op_type for op_type in saved_models.op_types(tmp_path / "plain"))
    assert {"TfToolkit>RmsNorm", "TfToolkit>RmsNormGrad"} <= saved_models.op_types(tmp_path / "native")
    meta = saved_models.read(tmp_path / "plain").meta_graphs[0]
    assert not any(">" in op.name for op in meta.meta_info_def.stripped_op_list.op)
    assert any(name.endswith(".so") for name in os.listdir(tmp_path / "native" / "assets.extra"))
    assert not (tmp_path / "plain" / "assets.extra").exists()

    np.save(tmp_path / "x.npy", X)
    use = f"""
import numpy as np, tensorflow as tf
x = tf.constant(np.load({str(tmp_path / "x.npy")!r}))
outputs = {{f"{{name}} {{key}}": value for name in ("infer", "gradients")
           for key, value in model.signatures[name](x=x).items()}}
np.savez(out, **outputs)
"""
    # A None in sys.modules makes every import of tftoolkit fail.
    plain = in_fresh_process(
        f"import sys; sys.modules['tftoolkit'] = None; import tensorflow as tf\n"
        f"model = tf.saved_model.load({str(tmp_path / 'plain')!r}); out = {str(tmp_path / 'plain.npz')!r}" + use
    )
    native = in_fresh_process(
        f"import runpy\n"
        f"model = runpy.run_path({str(tmp_path / 'native' / 'assets.extra' / 'load.py')!r})['load']()\n"
        f"out = {str(tmp_path / 'native.npz')!r}" + use
    )
    for process in (plain, native):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for kind, tolerance in (("plain", 1e-5), ("native", 0)):
        outputs = np.load(tmp_path / f"{kind}.npz")
        for name, function in (("infer", model.infer), ("gradients", model.gradients)):
            for key, value in tf.function(function)(tf.constant(X)).items():
                np.testing.assert_allclose(outputs[f"{name} {key}"], value, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_tflite_of_a_native_saved_model(tmp_path, model):
    signatures = {"gradients": model.signatures()["gradients"]}
    export.saved_model(model, tmp_path / "native", signatures=signatures, ops="native")
    export.tflite(tmp_path / "native", tmp_path / "m.tflite")
    outputs = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("gradients")(x=X)
    for key, value in tf.function(model.gradients)(tf.constant(X)).items():
        np.testing.assert_allclose(outputs[key], value, atol=1e-5)
    export.saved_model(tmp_path / "native", tmp_path / "plain")
    assert not (tmp_path / "plain" / "assets.extra").exists()
    export.verify(tmp_path / "plain", golden=tmp_path / "native")


def test_int8_of_a_model_with_a_custom_op(tmp_path, model):
    batches = [{"x": np.random.default_rng(1).standard_normal([200, 6]).astype(np.float32)}]

    def normalise(x):
        return {"y": model.nested(x @ model.weight)}

    signatures = {"f": (normalise, [tf.TensorSpec([None, 6], tf.float32, "x")])}
    report = export.tflite(
        model, tmp_path / "m.tflite", signatures=signatures, quantize="int8", representative={"f": batches}
    )
    assert report.rows[0].format == "TFLite int8, 1 op in float"  # the converter leaves a SQUARE between two kernels
    assert 0 < report.rows[0].worst.error <= report.rows[0].worst.bound


def test_a_stale_trace_is_decomposed_too(tmp_path):
    """A tf.function traced before some "export mode" was set still holds the custom op."""
    gamma, export_mode = tf.Variable(tf.ones([6])), [False]

    @tf.function
    def normalise(x):
        return x * tf.math.rsqrt(tf.reduce_mean(x * x, -1, True)) if export_mode[0] else custom_ops.rms_norm(x, gamma)

    stale = normalise.get_concrete_function(tf.TensorSpec([4, 6], tf.float32, "x"))
    export_mode[0] = True
    export.saved_model(tf.Module(), tmp_path / "sm", signatures={"f": stale})
    assert not any(">" in op_type for op_type in saved_models.op_types(tmp_path / "sm"))


def native_folder(tmp_path: Path, function, *specs) -> Path:
    return trace(tf.Module(), {"f": (function, list(specs))}, tmp_path / "native")


@pytest.mark.parametrize("shape", [[2, 3, 6], [None, 6], [None, None, None], None])
def test_shapes_known_and_unknown(tmp_path, shape):
    gamma = tf.Variable(tf.range(1.0, 7))
    folder = native_folder(
        tmp_path, lambda x: {"y": custom_ops.rms_norm(x, gamma)}, tf.TensorSpec(shape, tf.float32, "x")
    )
    assert decompose.decompose(folder, library.find) == ["TfToolkit>RmsNorm"]
    x = np.random.default_rng(0).standard_normal([2, 3, 6] if shape is None else [d or 2 for d in shape[:-1]] + [6])
    y = tf.saved_model.load(str(folder)).signatures["f"](x=tf.constant(x, tf.float32))["y"]
    expected = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * np.arange(1.0, 7)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def stand_in(tf_name: str, reference, schema="(features: f32[... d]) -> (activations: f32[... d])"):
    """A declaration that makes one of TensorFlow's own ops a custom one."""
    parsed = schema_parser.parse(schema)
    library = SimpleNamespace(name="StandIn", path=Path("none.so"), schemas={tf_name: parsed}, handlers={tf_name: {}})
    with mock.patch.object(ops.Op, "tf_name", tf_name):  # TensorFlow knows the op already
        op = ops.Op(library, tf_name)
    op.reference(reference)
    return op


def test_references_that_contain_custom_ops(tmp_path):
    gamma = np.ones(6, np.float32)
    softplus = stand_in("Softplus", lambda x: custom_ops.rms_norm(x, gamma))
    folder = native_folder(tmp_path, lambda x: {"y": tf.math.softplus(x)}, tf.TensorSpec([4, 6], tf.float32, "x"))
    replaced = decompose.decompose(folder, lambda name: softplus if name == "Softplus" else library.find(name))
    assert replaced == ["Softplus", "TfToolkit>RmsNorm"]
    y = tf.saved_model.load(str(folder)).signatures["f"](x=tf.constant(X))["y"]
    np.testing.assert_allclose(y, X / np.sqrt(np.mean(X * X, -1, keepdims=True) + 1e-6), rtol=1e-5)


def test_outputs_in_order_control_inputs_and_functions_inside_references(tmp_path):
    """Two outputs of which both and only the second are used, and a reference that has a loop, hence functions."""

    def cross_entropy(features, labels):
        kept = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + 0.0), [0, features])[1]
        return -tf.reduce_sum(labels * tf.nn.log_softmax(kept), -1), tf.nn.softmax(kept) - labels

    op_type = "SoftmaxCrossEntropyWithLogits"
    schema = "(features: f32[n d], labels: f32[n d]) -> (loss: f32[n], backprop: f32[n d])"
    op = stand_in(op_type, cross_entropy, schema)

    def function(x):
        both = tf.raw_ops.SoftmaxCrossEntropyWithLogits(features=x, labels=tf.nn.softmax(-x))
        second = tf.raw_ops.SoftmaxCrossEntropyWithLogits(features=-x, labels=tf.nn.softmax(x)).backprop
        with tf.control_dependencies([both.loss]):
            after = tf.identity(x)
        return {"loss": both.loss, "backprop": both.backprop, "second": second, "after": after}

    folder = native_folder(tmp_path, function, tf.TensorSpec([4, 6], tf.float32, "x"))
    expected = tf.function(function)(tf.constant(X))
    assert decompose.decompose(folder, {op_type: op}.get) == [op_type]
    assert op_type not in saved_models.op_types(folder)
    actual = tf.saved_model.load(str(folder)).signatures["f"](x=tf.constant(X))
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda x: tf.math.softplus(x), "contain each other without end"),
        (lambda x: tf.cast(x, tf.float64), "returns .*float64"),
        (lambda x: x + OUTSIDE, "tensors from outside"),
        (lambda x: 1 / 0, "division by zero"),
    ],
)
def test_bad_references(tmp_path, reference, message):
    folder = native_folder(tmp_path, lambda x: {"y": tf.math.softplus(x)}, tf.TensorSpec([4, 6], tf.float32, "x"))
    with pytest.raises(export.ExportError, match=f"decompose failed: .*{message}"):
        decompose.decompose(folder, {"Softplus": stand_in("Softplus", reference)}.get)


OUTSIDE = tf.Variable(1.0)


def test_a_reference_means_the_same_in_the_file(tmp_path):
    """In a TensorFlow 1 graph, where nodes are replaced, `==` would compare identities."""
    op = stand_in("Softplus", lambda x: tf.where(x == x + 0.0, x, 0.0))
    folder = native_folder(tmp_path, lambda x: {"y": tf.math.softplus(x)}, tf.TensorSpec([None], tf.float32, "x"))
    assert decompose.decompose(folder, {"Softplus": op}.get) == ["Softplus"]
    function = tf.saved_model.load(str(folder)).signatures["f"]
    assert function(x=tf.constant([1.0, 2.0]))["y"].numpy().tolist() == [1, 2]


@pytest.mark.slow
def test_an_op_whose_source_changed_in_this_process(tmp_path):
    """It bears a number that no other process knows: natively it cannot travel, decomposed it can."""
    source = """static ffi::Error Scale(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
      for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] * FACTOR;
      return ffi::Error::Success();
    }
    XLA_FFI_DEFINE_HANDLER(Cpu, Scale, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
    TK_OP(Scale, "(x: f32[...]) -> (y: f32[...])");
    TK_KERNEL(Scale, CPU, Cpu);
    """
    spec = tf.TensorSpec([3], tf.float32, "x")
    for factor in ("2", "3"):
        scale = custom_ops.load_inline(
            "ExportChanged", source.replace("FACTOR", factor), cache_dir=tmp_path / "cache"
        ).scale
        scale.reference(lambda x, factor=factor: x * float(factor))
        signatures = {"f": (lambda x, scale=scale: {"y": scale(x)}, [spec])}
        if factor == "2":
            export.saved_model(tf.Module(), tmp_path / "native", signatures=signatures, ops="native")
    with pytest.raises(export.ExportError, match=r"ExportChanged>Scale_2: .*restart Python"):
        export.saved_model(tf.Module(), tmp_path / "changed", signatures=signatures, ops="native")
    export.tflite(tf.Module(), tmp_path / "m.tflite", signatures=signatures)
    assert (
        Interpreter(str(tmp_path / "m.tflite")).get_signature_runner()(x=np.ones(3, np.float32))["y"].tolist()
        == [3] * 3
    )
