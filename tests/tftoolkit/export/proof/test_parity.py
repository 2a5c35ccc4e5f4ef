"""The bound of the parity check: room for what rounding explains, and for nothing else."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tftoolkit import export
from tftoolkit.export.convert.formats import DYNAMIC, FLOAT32, INT4_WEIGHTS, INT8
from tftoolkit.export.proof import bounds, rehearsal
from tftoolkit.export.proof.parity import GoldenCase, compare
from tftoolkit.export.runtimes.samples import Case
from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

SPEC = tf.TensorSpec([4, 16], tf.float32, "x")
REAL = [{"x": np.random.default_rng(i).standard_normal([4, 16]).astype(np.float32)} for i in range(40)]


def signatures(function):
    weight = tf.Variable(tf.random.stateless_normal([16, 6], [0, 1]))
    return {"serving_default": (lambda x: {"y": function(x @ weight)}, [SPEC])}


def best(scores):
    return tf.argmax(scores, -1, tf.int32)


def best_with_one_wrong(scores):
    """The class of one example in four, the first, is the next one."""
    return (best(scores) + tf.constant([1, 0, 0, 0])) % 6


def picture(scores):
    return tf.cast(tf.clip_by_value(1000 * scores + 128, 0, 10_000), tf.int32)


def picture_off(scores):
    return picture(scores) + 400


@pytest.mark.parametrize("mode", [pytest.param(None, marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize(
    ("right", "wrong"), [(best, best_with_one_wrong), pytest.param(picture, picture_off, marks=pytest.mark.slow)]
)
def test_a_wrong_integer_output_is_refused(tmp_path, mode, right, wrong):
    """int8 changes a few classes, and nearly every number of the picture; all the same it allows nothing else."""
    settings = {"quantize": mode, "representative": REAL}
    export.saved_model(tf.Module(), tmp_path / "golden", signatures=signatures(right))
    report = export.tflite(tmp_path / "golden", tmp_path / "right.tflite", **settings)
    (check,) = [check for check in report.rows[0].checks if check.inputs == "real"]
    if mode == "int8":
        assert 0 < check.error < check.bound
        runner = Interpreter(str(tmp_path / "right.tflite")).get_signature_runner()
        found = [runner(**inputs)["y"] for inputs in REAL]
        model = tf.saved_model.load(str(tmp_path / "golden")).signatures["serving_default"]
        expected = [model(x=tf.constant(inputs["x"]))["y"] for inputs in REAL]
        gap = np.abs(np.stack(found) - np.stack(expected))
        assert check.error == (np.mean(gap != 0) if right is best else gap.max())
    export.tflite(tf.Module(), tmp_path / "wrong.tflite", signatures=signatures(wrong), **settings)
    with pytest.raises(export.ExportError, match="parity failed at signature 'serving_default', tensor 'y'"):
        export.verify(tmp_path / "wrong.tflite", golden=tmp_path / "golden", representative=REAL)


class Classes:
    """A file that gives these classes, call by call."""

    def __init__(self, *classes):
        self.signatures = {}
        self._classes = iter(classes)

    def run(self, signature, inputs):
        return {"best": np.array(next(self._classes), np.int32)}


def test_close_decisions_of_one_call_excuse_no_other():
    """One element of eight is a close decision: one may differ, two may not, wherever they are."""
    golden = [
        GoldenCase(Case("real", "f", {}), {"best": np.zeros(4, np.int32)}, {"best": bound}) for bound in (0.25, 0.0)
    ]
    (check,) = compare(Classes([0, 7, 0, 0], [0, 0, 0, 0]), golden, INT8).checks
    assert (check.error, check.bound) == (0.125, 0.125)
    with pytest.raises(export.ExportError, match=r"by 0\.25 on real inputs; int8 allows 0\.125"):
        compare(Classes([0, 7, 0, 0], [0, 0, 1, 0]), golden, INT8)


def test_a_model_that_saturates_has_room_with_4_bits(tmp_path):
    """Its outputs move from end to end whether weights move by one rounding or by four: a right file's would, too."""
    export.saved_model(tf.Module(), tmp_path / "m", signatures=signatures(lambda scores: tf.tanh(1e4 * scores)))
    golden = SavedModelRuntime(tmp_path / "m")
    cases = [Case("random", "serving_default", inputs) for inputs in REAL]
    for number_format, ends in ((DYNAMIC, 1), (INT4_WEIGHTS, 2)):
        bound = bounds.golden_cases(golden, cases, number_format)[0].bounds["y"]
        assert bound == pytest.approx(2 * ends + 4 * number_format.rounding)


def test_calls_that_end_in_tensorflow_only_are_not_tried():
    golden = [GoldenCase(Case("nan", "f", {}), {"best": np.zeros(4, np.int32)}, {"best": None})]
    with pytest.raises(export.ExportError, match="at signature 'f': calls on nan inputs do not end, where TensorFlow"):
        compare(Classes(), golden, FLOAT32, {"nan"})


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "file"), [(export.tflite, "m.tflite"), (export.onnx, "m.onnx")])
def test_roundings_of_functions_have_room(tmp_path, exporter, file):
    """softplus of small numbers is 0.69…; what a normalisation leaves of it is mostly roundings."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    tokens = keras.Input([5], batch_size=4, name="x", dtype="int32")
    hidden = layers.Dense(32, activation="softplus")(layers.Embedding(20, 32)(tokens))
    model = keras.Model(tokens, layers.Dense(4)(layers.Flatten()(layers.LayerNormalization()(hidden))))
    real = [{"x": np.random.default_rng(i).integers(0, 20, [4, 5], np.int32)} for i in range(25)]
    checks = exporter(model, tmp_path / file, representative=real).rows[0].checks
    shares = [check.error / check.bound for check in checks if check.bound]
    assert 0.001 < max(shares) < 0.25


def test_what_is_one_less_than_a_function(tmp_path):
    """TensorFlow computes elu as exp(x) - 1, LiteRT more exactly."""
    function = (lambda x: {"y": 1e4 * tf.nn.elu(1e-4 * x)}, [SPEC])
    checks = export.tflite(tf.Module(), tmp_path / "m", signatures={"f": function}, representative=REAL).rows[0].checks
    assert max(check.error for check in checks if check.bound) > 1e-4


def test_functions_of_any_type_in_loops_and_branches(tmp_path):
    """The bound's copy of the model is a rewritten one; float64 and bfloat16 have roundings of their own."""

    def function(x):
        wide, narrow = tf.cast(x, tf.float64), tf.cast(x, tf.bfloat16)
        looped = tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.tanh(v) + tf.exp(-v * v)), [0, wide])[1]
        chosen = tf.cond(tf.reduce_mean(x) > 0, lambda: tf.nn.softmax(narrow), lambda: tf.sigmoid(narrow))
        return {"looped": looped, "chosen": chosen}

    checks = export.saved_model(tf.Module(), tmp_path / "m", signatures={"f": (function, [SPEC])}).rows[0].checks
    assert all(check.error == 0 for check in checks if check.bound is not None)
    assert all(check.bound > 0 for check in checks if check.inputs == "random")


@pytest.mark.slow
@pytest.mark.parametrize(
    "exporter",
    [
        export.saved_model,
        *(pytest.param(exporter, marks=pytest.mark.slow) for exporter in (export.tflite, export.onnx)),
    ],
)
def test_loops_without_end_on_made_up_inputs(tmp_path, monkeypatch, exporter):
    """The exponential of a large number is infinite, and stays above 1 whatever it is divided by."""
    monkeypatch.setattr(bounds, "SECONDS", 1.0)
    monkeypatch.setattr(rehearsal, "EXTREME_SECONDS", 1.0)

    def function(x):
        return {"y": tf.while_loop(lambda v: tf.reduce_max(v) > 1.0, lambda v: (v * 0.5,), [tf.exp(x)])[0]}

    checks = exporter(tf.Module(), tmp_path / "m.onnx", signatures={"f": (function, [SPEC])}).rows[0].checks
    assert {check.inputs for check in checks} == {"random", "zeros", "nan"}


@pytest.mark.slow
def test_a_file_that_never_ends_on_nan_where_tensorflow_does_is_refused(tmp_path, monkeypatch):
    """The largest of some NaN is NaN in TensorFlow, which isn't above 1; minus infinity in LiteRT."""
    monkeypatch.setattr(rehearsal, "EXTREME_SECONDS", 10.0)

    def function(x):
        largest = tf.nn.max_pool2d(x + tf.reduce_sum(x), 2, 2, "VALID")
        return {"y": tf.while_loop(lambda v: tf.reduce_max(tf.abs(v)) > 1.0, lambda v: (v * 0.6,), [largest])[0]}

    spec = tf.TensorSpec([1, 4, 4, 1], tf.float32, "x")
    with pytest.raises(export.ExportError, match=r"calls on (nan|inf) inputs do not end, where TensorFlow's do"):
        export.tflite(tf.Module(), tmp_path / "m.tflite", signatures={"f": (function, [spec])})
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.slow
def test_a_file_that_never_ends_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "SECONDS", 5.0)
    endless = tf.function(
        lambda x: tf.while_loop(lambda v: v[0, 0] < 2.0, lambda v: (v * 0.5,), [tf.abs(x)]), input_signature=[SPEC]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([endless.get_concrete_function()], tf.Module())
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(export.ExportError, match=r"structure failed: .*do not end within 5\.0 s"):
        export.verify(tmp_path / "m.tflite")
