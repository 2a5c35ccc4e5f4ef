"""Every number format and target of one small convolutional model, and what each refuses."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import custom_ops, export


@pytest.fixture(scope="module")
def model(convolutional):
    return convolutional()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """Traced once for all formats."""
    path = tmp_path_factory.mktemp("saved") / "model"
    export.saved_model(model, path)
    return path


INT8 = {"quantize": "int8"}
FORMATS = {
    "TFLite float32": {},
    "TFLite float16": {"quantize": "float16"},
    "TFLite dynamic": {"quantize": "dynamic"},
    "TFLite int8": INT8,
    "TFLite int8, int8 I/O": {**INT8, "integer_io": True},
    "TFLite int16x8": {"quantize": "int16x8"},
    "TFLite int16x8, int16 I/O": {"quantize": "int16x8", "integer_io": True},
    "TFLite int8, 2 ops in float": {**INT8, "keep_float": ["second", "logits"]},
    "TFLite int8, 1 op in float, int8 I/O": {**INT8, "keep_float": ["second"], "integer_io": True},
    "TFLite int16x8, 1 op in float": {"quantize": "int16x8", "keep_float": ["^.*/first"]},
}


# Each mode, with and without integer inputs and layers in float; the others hold nothing new.
FAST = {
    "TFLite float32", "TFLite float16", "TFLite dynamic", "TFLite int8, 1 op in float, int8 I/O",
    "TFLite int16x8, int16 I/O",
}  # fmt: skip


@pytest.mark.parametrize(
    "expected", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FORMATS]
)
def test_a_format(tmp_path, model, saved, images, representative, expected):
    path = tmp_path / "m.tflite"
    row = export.tflite(saved, path, representative=representative, **FORMATS[expected]).rows[0]
    assert row.format == expected
    assert set(row.latency) == {1, 2}
    infinities = {"inf"} if expected in ("TFLite float32", "TFLite float16") else set()  # integers have none
    assert {check.inputs for check in row.checks} == {"real", "random", "zeros", "large", "nan"} | infinities
    # By hand, in another interpreter than the gate's: as near as the format allows, and not exact by accident.
    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    source, target = runner.get_input_details()["image"], runner.get_output_details()["output_0"]
    given = images
    if "I/O" in expected:
        kind = np.dtype(np.int8 if "int8 I/O" in expected else np.int16)
        assert source["dtype"] == target["dtype"] == kind
        scale, zero = source["quantization"]
        limits = np.iinfo(kind)
        given = np.clip(np.round(images / scale) + zero, limits.min, limits.max).astype(kind)
        assert f"{kind} (scale {scale:.6g}" in row.signatures["serving_default"]["inputs"][0]
    outputs = runner(image=given)["output_0"]
    if "I/O" in expected:
        outputs = (outputs.astype(np.float64) - target["quantization"][1]) * target["quantization"][0]
    reference = model(images).numpy()
    relative = np.abs(outputs - reference).max() / np.abs(reference).max()
    low, high = {"float32": (0, 1e-6), "float16": (1e-6, 1e-3)}.get(expected.split()[-1], (1e-4, 0.06))
    assert low <= relative <= high
    assert relative == pytest.approx(row.worst.error / np.abs(reference).max(), rel=0.05, abs=2e-7)


@pytest.mark.slow
def test_a_free_batch_stays_free_and_a_fixed_one_fixed(tmp_path, model, images):
    fixed = {"serving_default": (lambda image: model(image), [tf.TensorSpec([1, 12, 12, 3], tf.float32, "image")])}
    singly = [{"image": image[None]} for image in images[:100]]
    for name, batch, signatures in (("free", "None", None), ("fixed", "1", fixed)):
        row = export.tflite(model, tmp_path / name, signatures=signatures, quantize="int8", representative=singly).rows[
            0
        ]
        assert row.signatures["serving_default"]["inputs"] == [f"image: float32[{batch}, 12, 12, 3]"]


@pytest.mark.slow
def test_two_signatures_quantised_together(tmp_path, model, images):
    specs = [tf.TensorSpec([None, 12, 12, 3], tf.float32, "image")]
    signatures = {
        "logits": (lambda image: {"logits": model(image)}, specs),
        "brighter": (lambda image: {"logits": model(image * 2.0)}, specs),
    }
    both = {name: [{"image": images}] for name in signatures}
    row = export.tflite(model, tmp_path / "m", signatures=signatures, quantize="int8", representative=both).rows[0]
    assert {check.signature for check in row.checks} == set(signatures)
    with pytest.raises(ValueError, match="0 examples for signature 'brighter'"):
        export.tflite(
            model, tmp_path / "n", signatures=signatures, quantize="int8", representative={"logits": both["logits"]}
        )


def test_layers_that_stay_in_float(tmp_path, saved, representative):
    path = tmp_path / "m.tflite"
    export.tflite(saved, path, quantize="int8", keep_float=["logits", "second"], representative=representative)
    details = Interpreter(str(path)).get_tensor_details()
    weights = [detail for detail in details if detail["name"].endswith(("/convolution", "/depthwise", "/MatMul"))]
    weights = [detail for detail in weights if ";" not in detail["name"]]  # those are outputs of merged ops
    types = {detail["name"].split("/")[1].removesuffix("_1"): detail["dtype"] for detail in weights}
    assert types["second"] == types["logits"] == np.float32
    assert types["first"] == types["depthwise"] == types["hidden"] == np.int8


@pytest.mark.slow
def test_a_recipe_of_ai_edge_quantizer(tmp_path, saved, representative):
    from ai_edge_quantizer import recipe

    row = export.tflite(saved, tmp_path / "m", quantize=recipe.dynamic_wi8_afp32(), representative=representative).rows[
        0
    ]
    assert row.format == "TFLite dynamic"
    saturating = recipe.static_wi8_ai8()
    assert (
        "int8"
        in export.tflite(saved, tmp_path / "n", quantize=saturating, representative=representative).rows[0].format
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_float": ["first"]}, "keep_float needs quantize"),
        ({"quantize": "float16", "keep_float": ["first"]}, "keep_float needs quantize"),
        ({"quantize": "dynamic", "keep_float": "first"}, r"write \['first'\]"),
        ({"quantize": "dynamic", "keep_float": ["third"]}, "no op or weight is found by 'third'; there are .*first"),
        ({"quantize": "dynamic", "integer_io": True}, "integer_io needs"),
        ({"quantize": "int16x8"}, "'int16x8' needs representative"),
        ({"quantize": []}, "or a recipe"),
        ({"quantize": ["int8"]}, "or a recipe"),
    ],
)
def test_unusable_modes(tmp_path, saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        export.tflite(saved, tmp_path / "m.tflite", **arguments)
    assert os.listdir(tmp_path) == []


def test_nothing_to_quantise(tmp_path):
    """The converter leaves small weights in float32 without a word."""
    small = keras.Sequential([keras.Input([4]), keras.layers.Dense(3)])
    with pytest.raises(export.ExportError, match="asked for dynamic, the converter wrote float32"):
        export.tflite(small, tmp_path / "m.tflite", quantize="dynamic")
    assert os.listdir(tmp_path) == []


def test_float16_overflow(tmp_path):
    """A weight beyond 65504 becomes infinite."""
    big = keras.Sequential([keras.Input([64]), keras.layers.Dense(64, use_bias=False)])
    big.layers[-1].set_weights([np.full([64, 64], 1e5, np.float32)])
    with pytest.raises(export.ExportError, match=r"parity failed.*float16 allows"):
        export.tflite(big, tmp_path / "m.tflite", quantize="float16")
    assert os.listdir(tmp_path) == []


# --- ONNX


def test_onnx(tmp_path, model, images, representative):
    row = export.onnx(model, tmp_path / "m.onnx", representative=representative).rows[0]
    assert row.format == "ONNX"
    assert row.signatures["serving_default"]["inputs"] == ["image: float32[None, 12, 12, 3]"]
    assert {check.inputs for check in row.checks} == {"real", "random", "zeros", "large", "nan", "inf"}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        outputs = session.run(["output_0"], {"image": images[:batch]})[0]
        np.testing.assert_allclose(outputs, model(images[:batch]), atol=1e-5)


@pytest.mark.slow
def test_onnx_keeps_names_order_and_types_through_control_flow(tmp_path):
    holder = tf.Module()
    holder.weight = tf.Variable(tf.random.Generator.from_seed(0).normal([4, 4]))

    def function(zeta, alpha, steps):
        hidden = tf.while_loop(
            lambda i, h: i < steps, lambda i, h: (i + 1, tf.tanh(h @ holder.weight + alpha)), [tf.constant(0), zeta]
        )[1]
        return {"z": hidden, "a": tf.argmax(hidden, -1), "positive": hidden > 0}

    specs = [
        tf.TensorSpec([None, 4], tf.float32, "zeta"),
        tf.TensorSpec([4], tf.float32, "alpha"),
        tf.TensorSpec([], tf.int32, "steps"),
    ]
    rng = np.random.default_rng(0)
    real = [
        {
            "zeta": rng.standard_normal([5, 4], np.float32),
            "alpha": rng.standard_normal(4, np.float32),
            "steps": np.int32(n),
        }
        for n in range(4)
    ]
    path = tmp_path / "loop.onnx"
    row = export.onnx(holder, path, signatures={"loop": (function, specs)}, representative=real).rows[0]
    assert row.signatures == {
        "loop": {
            "inputs": ["alpha: float32[4]", "steps: int32[]", "zeta: float32[None, 4]"],
            "outputs": ["a: int64[None]", "positive: bool[None, 4]", "z: float32[None, 4]"],
        }
    }
    assert [value.name for value in onnx.load(path).graph.input] == ["alpha", "steps", "zeta"]


def test_onnx_of_one_of_several_signatures(tmp_path):
    specs = [tf.TensorSpec([None, 2], tf.float32, "x")]
    signatures = {"double": (lambda x: {"y": 2 * x}, specs), "half": (lambda x: {"y": x / 2}, specs)}
    tf_module = tf.Module()
    with pytest.raises(ValueError, match=r"\['double', 'half'\]: give signature="):
        export.onnx(tf_module, tmp_path / "m.onnx", signatures=signatures)
    with pytest.raises(ValueError, match="'third' is none of the model's"):
        export.onnx(tf_module, tmp_path / "m.onnx", signatures=signatures, signature="third")
    with pytest.raises(ValueError, match=r"must end with \.onnx"):
        export.onnx(tf_module, tmp_path / "m.bin", signatures=signatures, signature="half")
    assert os.listdir(tmp_path) == []
    export.onnx(tf_module, tmp_path / "m.onnx", signatures=signatures, signature="half")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": np.ones([1, 2], np.float32)})[0], [[0.5, 0.5]])


def test_onnx_of_a_model_with_a_custom_op(tmp_path):
    from tftoolkit import custom_ops

    gamma = tf.Variable(tf.random.Generator.from_seed(0).uniform([6]) + 0.5)
    specs = [tf.TensorSpec([None, 6], tf.float32, "x")]
    signatures = {"f": (lambda x: {"y": custom_ops.rms_norm(x, gamma)}, specs)}
    export.onnx(tf.Module(), tmp_path / "m.onnx", signatures=signatures)
    assert {node.domain for node in onnx.load(tmp_path / "m.onnx").graph.node} == {""}


def test_a_changed_onnx_file(tmp_path):
    keras.utils.set_random_seed(0)
    small = keras.Sequential([keras.Input([6], name="x"), keras.layers.Dense(4, name="dense")])
    path = tmp_path / "m.onnx"
    export.onnx(small, path)
    proto = onnx.load(path)
    weights = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [6, 4])
    changed = onnx.numpy_helper.to_array(weights) * 1.001
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(proto, path)
    with pytest.raises(export.ExportError, match="parity failed"):
        export.verify(path, golden=small)
    with pytest.raises(export.ExportError, match=r"golden failed: .*another file"):
        export.verify(path)
    path.write_bytes(b"\x08\x99 not a model")
    with pytest.raises(export.ExportError, match="structure failed: onnxruntime cannot open"):
        export.verify(path, golden=small)


IN_A_FRESH_PROCESS = """
import json, sys
import numpy as np, tensorflow as tf

folder, inputs = sys.argv[1], np.load(sys.argv[2])
options = tf.saved_model.LoadOptions(experimental_load_function_aliases=True)
loaded = tf.saved_model.load(folder, options=options)
found, shapes = {}, {}
for name, function in loaded.signatures.items():
    shapes[name] = function.structured_input_signature[1]["x"].shape.as_list()
    sizes = (1, 2, 5) if shapes[name][0] is None else shapes[name][:1]  # TensorFlow doesn't check the size
    found[name] = {n: {k: v.numpy().tolist() for k, v in function(x=tf.constant(inputs[:n])).items()} for n in sizes}
aliases = {}
for alias, functions in loaded.function_aliases.items():
    (function,) = functions
    aliases[alias] = {k: v.numpy().tolist() for k, v in function(x=tf.constant(inputs[:2])).items()}
assert not any(name.split(".")[0] == "tftoolkit" for name in sys.modules)
print(json.dumps({"signatures": found, "shapes": shapes, "aliases": aliases}))
"""


@pytest.mark.slow
def test_signatures_and_aliases_of_a_saved_model_in_a_fresh_process(tmp_path):
    """With TensorFlow alone: every signature by its name, functions by their aliases, free and fixed batch sizes."""
    weight, gamma = tf.Variable(tf.random.stateless_normal([6, 4], [0, 1])), tf.Variable(tf.linspace(0.5, 1.5, 6))
    module = tf.Module()
    module.weights = [weight, gamma]

    def hidden(x):
        return custom_ops.rms_norm(x, gamma)  # replaced in the file: names must survive it

    def classify(x):
        return {"scores": hidden(x) @ weight}

    def embed(x):
        return {"hidden": hidden(x)}

    free, fixed = tf.TensorSpec([None, 6], tf.float32, "x"), tf.TensorSpec([2, 6], tf.float32, "x")
    signatures = {"serving_default": (classify, [free]), "embed": (embed, [free]), "embed_two": (embed, [fixed])}
    aliases = {"Classifier/call": "serving_default", "pair": "embed_two"}
    export.saved_model(module, tmp_path / "first", signatures=signatures, aliases=aliases)
    export.saved_model(tmp_path / "first", tmp_path / "second")  # of a SavedModel on disk
    with pytest.raises(ValueError, match="it keeps its own"):
        export.saved_model(tmp_path / "first", tmp_path / "third", aliases=aliases)

    x = np.random.default_rng(0).standard_normal([5, 6]).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    for folder in ("first", "second"):
        command = [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / folder, tmp_path / "x.npy"]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert found["shapes"] == {"serving_default": [None, 6], "embed": [None, 6], "embed_two": [2, 6]}
        for name, (function, _) in signatures.items():
            for size, outputs in found["signatures"][name].items():
                for output, value in function(x[: int(size)]).items():
                    np.testing.assert_allclose(outputs[output], value, rtol=1e-5, atol=1e-6)
        assert found["aliases"].keys() == aliases.keys()
        np.testing.assert_allclose(found["aliases"]["Classifier/call"]["scores"], classify(x[:2])["scores"], rtol=1e-5)
        np.testing.assert_allclose(found["aliases"]["pair"]["hidden"], embed(x[:2])["hidden"], rtol=1e-5)
