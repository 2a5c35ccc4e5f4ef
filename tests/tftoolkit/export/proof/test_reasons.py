"""Right files that were refused, and refusals whose reasons are to be true and readable."""

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export

RNG = np.random.default_rng(0)


def refusal(exporter, tmp_path, function, *specs, **settings):
    with pytest.raises(export.ExportError) as error:
        exporter(tf.Module(), tmp_path / "m.onnx", signatures={"f": (function, list(specs))}, **settings)
    assert not list(tmp_path.iterdir())
    assert "\n" not in error.value.reason
    assert "\x1b" not in error.value.reason
    assert "loc(" not in error.value.reason
    return error.value.reason


# --- Refused without cause


@pytest.mark.parametrize("mode", ["dynamic", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("pooled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_e5_an_embedding_of_which_rows_are_taken(tmp_path, mode, pooled):
    """int8 rows of a table are weights, no activations."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input([6], batch_size=1, dtype="int32", name="tokens")
    rows = keras.layers.Embedding(500, 16)(tokens)
    hidden = keras.layers.GlobalAveragePooling1D()(rows) if pooled else keras.layers.Flatten()(rows)
    model = keras.Model(tokens, keras.layers.Dense(100)(hidden))
    real = [{"tokens": RNG.integers(0, 500, [1, 6], np.int32)} for _ in range(100)]
    row = export.tflite(model, tmp_path / "m", quantize=mode, representative=real).rows[0]
    assert row.format.startswith(f"TFLite {mode}")
    found = Interpreter(str(tmp_path / "m")).get_signature_runner()(**real[0])["output_0"]
    np.testing.assert_allclose(found, model(real[0]["tokens"]), atol=0.01)


TEXT = np.array([b"apple", b"", "Grüße".encode(), b"nobody", b"two words"], object)


def test_e5_strings_in_tflite(tmp_path):
    keys = tf.constant([b"apple", "Grüße", b""])
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, tf.constant([3, 7, 9], tf.int64)), -1
    )
    signatures = {
        "ids": (lambda s: {"id": module.table.lookup(s)}, [tf.TensorSpec([None], tf.string, "s")]),
        "copy": (lambda s: {"copy": tf.identity(s)}, [tf.TensorSpec([], tf.string, "s")]),
    }
    export.tflite(module, tmp_path / "m.tflite", signatures=signatures, representative={"ids": [{"s": TEXT}]})
    found = Interpreter(str(tmp_path / "m.tflite")).get_signature_runner("ids")(s=TEXT)["id"]
    np.testing.assert_array_equal(found, [3, 9, 7, -1, -1])
    export.verify(tmp_path / "m.tflite")


def test_e5_labels_in_onnx(tmp_path):
    """onnxruntime returns str, TensorFlow bytes."""
    labels = tf.constant(["cat", "dog", "Grüße"])

    def function(x, s):
        return {"label": tf.gather(labels, tf.argmax(x, -1)), "copy": tf.reverse(s, [0])}

    specs = [tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([None], tf.string, "s")]
    export.onnx(tf.Module(), tmp_path / "m.onnx", signatures={"f": (function, specs)})
    feed = {"x": np.eye(3, dtype=np.float32), "s": np.array(["a", "é"], object)}
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(["label", "copy"], feed)
    assert [array.tolist() for array in found] == [["cat", "dog", "Grüße"], ["é", "a"]]
    export.verify(tmp_path / "m.onnx")


def test_a_wrong_label_is_refused(tmp_path):
    spec = [tf.TensorSpec([None, 3], tf.float32, "x")]
    for name, labels in (("golden", ["cat", "dog", "cow"]), ("other", ["cat", "dog", "cows"])):
        signatures = {"f": (lambda x, names=labels: {"label": tf.gather(names, tf.argmax(x, -1))}, spec)}
        export.saved_model(tf.Module(), tmp_path / name, signatures=signatures)
    export.onnx(tmp_path / "other", tmp_path / "m.onnx")
    real = [{"x": np.eye(3, dtype=np.float32)}]
    with pytest.raises(export.ExportError, match=r"parity .*tensor 'label'"):
        export.verify(tmp_path / "m.onnx", golden=tmp_path / "golden", representative=real)


def test_e5_scalars_need_no_representative(tmp_path):
    specs = [tf.TensorSpec([], dtype, dtype.name) for dtype in (tf.float32, tf.int32, tf.bool)]

    def function(x, n, flag):
        return {"y": tf.where(flag, 2.0 * x, tf.cast(n, tf.float32))}

    row = export.tflite(tf.Module(), tmp_path / "m", signatures={"f": (function, specs)}).rows[0]
    assert row.signatures["f"]["inputs"] == ["bool: bool[]", "float32: float32[]", "int32: int32[]"]
    signatures = {"f": (lambda x: 2.0 * x, [tf.TensorSpec(None, tf.float32, "x")])}
    with pytest.raises(ValueError, match="the rank of input 'x' is unknown; give representative"):
        export.tflite(tf.Module(), tmp_path / "n", signatures=signatures)


@pytest.mark.slow
def test_e5_a_masking_constant_that_float16_cannot_hold(tmp_path):
    """It is named, and with bounded inputs the right file is accepted."""
    x, mask = keras.Input([5, 8], name="x"), keras.Input([5], dtype="bool", name="mask")
    keras.utils.set_random_seed(0)
    y = keras.layers.MultiHeadAttention(2, 16)(x, x, attention_mask=keras.layers.Reshape([1, 5])(mask))
    model = keras.Model([x, mask], y)
    message = r"on large inputs.* 1000 times as large .*constant -.* is stored as -65504.* -3e4.*input_ranges"
    with pytest.raises(export.ExportError, match=message):
        export.tflite(model, tmp_path / "m", quantize="float16")
    export.tflite(model, tmp_path / "m", quantize="float16", input_ranges={"x": (-5, 5)})


# --- Reasons

IMAGE = tf.TensorSpec([1, 8, 8, 3], tf.float32, "x")


def mel(x):
    spectrum = tf.abs(tf.signal.stft(x, 64, 32))
    matrix = tf.signal.linear_to_mel_weight_matrix(20, 33, 8000, 80.0, 4000.0)
    return {"y": tf.signal.mfccs_from_log_mel_spectrograms(tf.math.log(spectrum @ matrix + 1e-6))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "spec", "expected"),
    [
        (
            lambda x: {"y": tf.image.resize(x, [4, 4])}, tf.TensorSpec([1, 8, 8, 3], tf.uint8, "x"),
            "no builtin op for ResizeBilinear(uint8[1, 8, 8, 3], int32[2]); compute in float32",
        ),
        (
            lambda x: {"y": tf.nn.conv2d(tf.cast(x, tf.float16), tf.ones([3, 3, 3, 4], tf.float16), 1, "SAME")}, IMAGE,
            "Conv2D(float16[1, 8, 8, 3], float16[3, 3, 3, 4]); compute in float32; of a mixed_float16 model",
        ),
        (
            lambda x: {"y": tf.cast(tf.cast(x, tf.bfloat16) @ tf.ones([3, 4], tf.bfloat16), tf.float32)}, IMAGE,
            "compute in float32; of a mixed_bfloat16 model",
        ),
        (mel, tf.TensorSpec([1, 512], tf.float32, "x"), "StridedSlice(complex64["),
        (lambda x: {"y": tf.random.poisson([], x)}, IMAGE, "RandomPoissonV2(int32[0], float32[1, 8, 8, 3])"),
    ],
    ids=["uint8", "float16", "bfloat16", "complex", "none"],
)  # fmt: skip
def test_e6_operands_of_ops_that_tflite_lacks(tmp_path, function, spec, expected):
    assert expected in refusal(export.tflite, tmp_path, function, spec)


def test_e6_a_list_of_tensors_with_a_free_batch(tmp_path):
    @tf.function
    def function(x):
        array = tf.TensorArray(tf.float32, 5)
        for i in tf.range(5):
            array = array.write(i, x[:, i] * 2)
        return {"y": array.stack()}

    reason = refusal(export.tflite, tmp_path, function, tf.TensorSpec([None, 5], tf.float32, "x"))
    assert "give fixed shapes" in reason


def test_e6_one_name_for_an_input_and_an_output_in_onnx(tmp_path):
    reason = refusal(export.onnx, tmp_path, lambda x: {"x": 2 * x, "y": x}, IMAGE)
    assert "an input and an output are both named 'x'" in reason
    assert "x_out" in reason
    export.tflite(tf.Module(), tmp_path / "m", signatures={"f": (lambda x: {"x": 2 * x}, [IMAGE])})


def test_e6_no_addresses_of_functions(tmp_path):
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(tf.constant([b"a"]), tf.constant([1])), -1)
    module = tf.Module()
    module.table = table
    signatures = {"f": (lambda s: {"y": table.lookup(s)}, [tf.TensorSpec([None], tf.string, "s")])}
    with pytest.raises(export.ExportError, match="ONNX has no op for LookupTableFindV2") as error:
        export.onnx(module, tmp_path / "m.onnx", signatures=signatures)
    assert "fct=" not in str(error.value)


@pytest.mark.parametrize("entry", [lambda f, s: (f, [s]), lambda f, s: tf.function(f, input_signature=[s])])
def test_e6_a_colon_in_a_name(tmp_path, entry):
    spec = tf.TensorSpec([2], tf.float32, "a:0")
    with pytest.raises(ValueError, match=r"signatures\['f'\]: an input is named 'a:0'.*call it 'a'"):
        export.tflite(tf.Module(), tmp_path / "m", signatures={"f": entry(lambda x: {"y": 2 * x}, spec)})


def test_e6_differences_say_what_to_do(tmp_path):
    """Where the numbers came from and how to go on, not three guesses."""
    reason = refusal(export.tflite, tmp_path, lambda x: {"y": tf.math.softplus(x)}, IMAGE)
    assert "on large inputs" in reason
    assert "1000 times as large as the random ones" in reason
    assert "input_ranges={name: (least, greatest)}" in reason
    report = export.tflite(
        tf.Module(), tmp_path / "m", signatures={"f": (lambda x: {"y": tf.math.softplus(x)}, [IMAGE])},
        input_ranges={"x": (-20, 20)},
    )  # fmt: skip
    assert report.rows[0].dropped == {}


def test_e6_a_crash_of_a_float_file_has_no_hint_about_integers():
    from tftoolkit.export.runtimes.worker import CAUSES

    assert not any("int8" in cause for cause in CAUSES.values())
