"""What files are proven on where nobody gives inputs: integers, strings and floats, and what TensorFlow refuses."""

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf2onnx.convert

from tftoolkit import export
from tftoolkit.export.proof import rehearsal
from tftoolkit.export.runtimes.made_up import cases
from tftoolkit.export.runtimes.runtime import Signature, Tensor

INTEGER_KINDS = {"0..9", "0..255", "-1..1", "-9..9", "limits"}


def made(*tensors, real=(), ranges=None):
    """By kind all numbers of an input called x."""
    found: dict[str, list] = {}
    for case in cases({"f": Signature(tensors, ())}, {"f": list(real)}, ranges=ranges):
        found.setdefault(case.kind, []).extend(np.asarray(case.inputs["x"]).ravel().tolist())
    return found


def tensor(dtype, shape=(None,)):
    return Tensor("x", shape, np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (None,), (4, 5)], ids=str)
def test_e1_signed_integers_of_both_signs_and_at_the_limits(dtype, shape):
    found = made(tensor(dtype, shape))
    info = np.iinfo(dtype)
    assert {info.min, info.max} <= set(found["limits"])
    assert min(found["-9..9"]) == -9
    assert max(found["-9..9"]) == 9
    assert set(found["-1..1"]) == {-1, 0, 1}
    assert (min(found["0..255"]), max(found["0..255"])) == (0, min(255, info.max))
    assert set(found["random"]) <= {0, 1}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_e1_unsigned_integers(dtype):
    found = made(tensor(dtype, (100,)))
    assert {"-1..1", "-9..9"}.isdisjoint(found)
    assert len(set(found["0..255"])) > 100
    assert {0, np.iinfo(dtype).max} <= set(found["limits"])


def test_e1_several_inputs_together_and_one_by_one():
    signature = Signature((tensor("int32"), Tensor("ids", (None,), np.dtype(np.int64))), ())
    found = [case for case in cases({"f": signature}, {}) if case.kind == "-9..9"]
    assert {case.only for case in found} == {None, "x", "ids"}
    alone = next(case for case in found if case.only == "x")
    assert set(alone.inputs["ids"]) <= {0, 1}
    both = next(case for case in found if case.only is None)
    assert not np.array_equal(both.inputs["x"], both.inputs["ids"])


def test_e1_strings_are_not_empty():
    assert len(set(made(tensor(object, (20,)))["random"]) - {b""}) > 5
    real = [{"x": np.array([b"red", b"green"], object)}]
    assert set(made(tensor(object), real=real)["random"]) <= {b"red", b"green"}


def test_e5_ranges_bound_what_is_made_up():
    found = made(tensor("int32"), ranges={"x": (2, 30)})
    assert min(map(min, found.values())) == min(found["limits"]) == 2
    assert max(map(max, found.values())) == max(found["limits"]) == 30
    assert {"-9..9", "-1..1"}.isdisjoint(found)  # the same as 0..9 then
    found = made(tensor("float32"), ranges={"x": (-2, 3)})
    assert found.keys() == {"random", "zeros", "large"}
    assert min(map(min, found.values())) >= -2
    assert max(map(max, found.values())) <= 3


def test_a_mask_of_floats_stays_one():
    real = [{"x": np.array([0, 1, 1], np.float32)}]
    assert set(made(tensor("float32"), real=real)["random"]) <= {0.0, 1.0}


def foreign(path, function, *specs):
    """A file as tf2onnx writes it."""
    model, _ = tf2onnx.convert.from_function(tf.function(function), list(specs), opset=18)
    model.graph.name = "serving_default"
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda n: {"y": n // 4}, "-1..1"),
        pytest.param(lambda n: {"y": n % 4}, "-1..1", marks=pytest.mark.slow),
        pytest.param(lambda n: {"y": tf.one_hot(n, 3)}, "-1..1", marks=pytest.mark.slow),
    ],
)
def test_e1_verify_of_a_foreign_file_tries_negative_integers(tmp_path, function, kind):
    spec = tf.TensorSpec([None], tf.int32, "n")
    foreign(tmp_path / "m.onnx", function, spec)
    (wrong,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"n": np.array([-1], np.int32)})
    assert not np.array_equal(wrong, function(tf.constant([-1]))["y"])
    export.saved_model(tf.Module(), tmp_path / "golden", signatures={"serving_default": (function, [spec])})
    with pytest.raises(export.ExportError, match=f"parity .* on {kind} inputs; .*input_ranges"):
        export.verify(tmp_path / "m.onnx", golden=tmp_path / "golden")
    export.verify(tmp_path / "m.onnx", golden=tmp_path / "golden", input_ranges={"n": (0, 99)})


def test_e1_what_tensorflow_refuses_is_dropped_and_listed(tmp_path):
    """Tokens must be indices; the other input is tried with any integers all the same."""
    table = tf.Variable(tf.random.stateless_normal([20, 4], [0, 1]))

    def function(tokens, n):
        return {"y": tf.gather(table, tokens), "r": n % 4}

    specs = [tf.TensorSpec([None, 2], tf.int32, "tokens"), tf.TensorSpec([None], tf.int32, "n")]
    report = export.onnx(tf.Module(), tmp_path / "m.onnx", signatures={"f": (function, specs)})
    assert {check.inputs for check in report.rows[0].checks} >= INTEGER_KINDS
    assert report.rows[0].dropped == {}
    report = export.onnx(tf.Module(), tmp_path / "t.onnx", signatures={"f": (lambda t: tf.gather(table, t), specs[:1])})
    assert report.rows[0].dropped == {"f": ["0..255", "-1..1", "-9..9", "limits"]}
    assert "t.onnx, f: TensorFlow takes no calls on 0..255, -1..1, -9..9, limits" in str(report)


@pytest.mark.slow  # TensorFlow waits ten seconds for memory before it gives up
def test_e1_an_integer_that_is_a_size_does_not_take_all_memory(tmp_path):
    """An array of two thousand million numbers is refused in the child process."""
    spec = tf.TensorSpec([], tf.int32, "n")
    report = export.tflite(
        tf.Module(), tmp_path / "m", signatures={"f": (lambda n: tf.reduce_sum(tf.range(n)), [spec])}
    )
    assert report.rows[0].dropped == {"f": ["limits"]}


def test_e1_a_model_that_ends_its_process_on_some_integers(tmp_path, monkeypatch):
    """Only those are dropped, by kind."""
    kinds = []

    def call_within(_, function, path, libraries, tried):
        kinds.append({case.kind for case in tried})
        if "limits" in kinds[-1]:
            raise export.ExportError("convert", "it ended its process")
        return [True] * len(tried)

    monkeypatch.setattr(rehearsal.worker, "call_within", call_within)
    monkeypatch.setattr("tftoolkit.export.saved_models.op_types", lambda _: set())
    tried = cases({"f": Signature((tensor("int32"),), ())}, {})
    found = rehearsal.taken_by_tensorflow(tmp_path, tried)
    assert [case.kind for case in found] == [case.kind for case in tried if case.kind != "limits"]
    assert len(kinds) == 1 + len(INTEGER_KINDS)


IMAGE = tf.TensorSpec([1, 4, 4, 1], tf.float32, "image")


def asserted(image):
    tf.debugging.assert_non_negative(image)
    return {"small": tf.image.resize(image, [2, 2], "area")}


@pytest.mark.parametrize(
    ("function", "specs", "what"),
    [
        (asserted, [IMAGE], "Condition x >= 0 did not hold"),
        pytest.param(
            lambda ids: {"y": tf.gather(tf.ones([9]), ids + 50)}, [tf.TensorSpec([None], tf.int32, "ids")],
            "is not in", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("exporter", [export.onnx, pytest.param(export.saved_model, marks=pytest.mark.slow)])
def test_e3_a_model_that_refuses_random_inputs_needs_real_ones(tmp_path, exporter, function, specs, what):
    """Zeros alone prove nothing."""
    with pytest.raises(export.ExportError, match=f"{what}.*give representative inputs"):
        exporter(tf.Module(), tmp_path / "m.onnx", signatures={"f": (function, specs)})
    assert not (tmp_path / "m.onnx").exists()


def test_e3_with_real_inputs_the_wrong_file_is_seen(tmp_path):
    real = [{"image": np.random.default_rng(0).random([1, 4, 4, 1], np.float32)}]
    with pytest.raises(export.ExportError, match=r"parity .* on real inputs"):
        export.onnx(tf.Module(), tmp_path / "m.onnx", signatures={"f": (asserted, [IMAGE])}, representative={"f": real})

    def right(image):
        tf.debugging.assert_non_negative(image)
        tf.debugging.assert_less_equal(image, 1.0)
        return {"twice": 2.0 * image}

    report = export.onnx(
        tf.Module(), tmp_path / "m.onnx", signatures={"f": (right, [IMAGE])}, representative={"f": real}
    )
    assert report.rows[0].dropped == {"f": ["large", "nan", "inf"]}
    arguments = {"signatures": {"f": (right, [IMAGE])}, "input_ranges": {"image": (0, 1)}, "quantize": None}
    row = export.tflite(tf.Module(), tmp_path / "m.tflite", **arguments).rows[0]
    assert {check.inputs for check in row.checks} == {"random", "zeros", "large"}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (3, "must be a dict"),
        ({"y": (0, 1)}, r"names 'y'; the inputs that are numbers are \['image'\]"),
        ({"image": (1, 0)}, "both finite"),
        ({"image": 1}, "must be .least, greatest."),
        ({"image": (0, np.inf)}, "both finite"),
    ],
)
def test_unusable_ranges(tmp_path, ranges, message):
    signatures = {"f": (lambda image: 2 * image, [IMAGE])}
    with pytest.raises(ValueError, match=message):
        export.saved_model(tf.Module(), tmp_path / "m", signatures=signatures, input_ranges=ranges)
