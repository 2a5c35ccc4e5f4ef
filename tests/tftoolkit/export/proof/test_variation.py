"""Bounds larger than what they bound: what of an output is not proven, and files that no bound lets through."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export
from tftoolkit.export.convert.formats import FLOAT32, INT8
from tftoolkit.export.proof.variation import Variation

RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.standard_normal(shape).astype("f4") / 5 for shape in ([3, 3, 3, 16], [1, 1, 16, 10]))
IMAGE = [tf.TensorSpec([1, 16, 16, 3], tf.float32, "image")]
IMAGES = [{"image": RNG.random([1, 16, 16, 3]).astype("f4")} for _ in range(100)]


def features(image):
    hidden = tf.nn.relu(tf.nn.conv2d(image, tf.constant(FIRST), 2, "SAME"))
    return tf.nn.conv2d(hidden, tf.constant(SECOND), 1, "SAME")


def boxes_and_scores(image):
    x = features(image)
    return {"pred": tf.concat([640.0 * tf.sigmoid(x[..., :4]), tf.sigmoid(x[..., 4:])], -1)}


def scores_and_boxes(image):
    return {"pred": boxes_and_scores(image)["pred"][..., ::-1]}


def apart(image):
    """Never in one tensor, which has one scale."""
    x = features(image)
    return {"boxes": 640.0 * tf.sigmoid(x[..., :4]), "scores": tf.sigmoid(x[..., 4:])}


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (boxes_and_scores, r"pred\[\.\.\., 4:\]"),
        pytest.param(scores_and_boxes, r"pred\[\.\.\., :6\]", marks=pytest.mark.slow),
    ],
)
def test_e2_scores_beside_boxes_are_not_proven(tmp_path, function, part):
    settings = {"signatures": {"f": (function, IMAGE)}, "quantize": "int8", "representative": {"f": IMAGES}}
    with pytest.raises(export.ExportError, match=f"nothing is proven for {part}: .*give it an output of its own"):
        export.tflite(tf.Module(), tmp_path / "m.tflite", **settings)
    # Where the user says what is good enough, that decides, and the report says so.
    row = export.tflite(tf.Module(), tmp_path / "m.tflite", **settings, metric=lambda predict: 1.0, max_drop=0.0).rows[
        0
    ]
    assert len(row.unproven) == 1
    assert "proven by the metric alone" in str(export.ExportReport((row,)))
    export.verify(tmp_path / "m.tflite")


@pytest.mark.slow
def test_e2_apart_they_are_proven(tmp_path):
    export.tflite(
        tf.Module(), tmp_path / "m.tflite", signatures={"serving_default": (apart, IMAGE)}, quantize="int8",
        representative=IMAGES,
    )  # fmt: skip


WEIGHTS = [RNG.standard_normal([8, 8]).astype("f4") / 2 for _ in range(3)]
TOKENS = [tf.TensorSpec([1, 6, 8], tf.float32, "x"), tf.TensorSpec([1, 6], tf.float32, "mask")]


def attention(x, mask):
    q, k, v = (x @ tf.constant(w) for w in WEIGHTS)
    scores = tf.matmul(q, k, transpose_b=True) / 8**0.5 + (1 - mask)[:, None, :] * -1e9
    return {"y": tf.nn.softmax(scores) @ v}


def masked(count=100):
    lengths = RNG.integers(1, 7, count)
    return [
        {"x": RNG.standard_normal([1, 6, 8]).astype("f4"), "mask": (np.arange(6) < n)[np.newaxis].astype("f4")}
        for n in lengths
    ]


@pytest.mark.parametrize("mode", ["int8", pytest.param("int16x8", marks=pytest.mark.slow)])
def test_e2_a_mask_is_not_rounded(tmp_path, mode):
    """A perturbed 0 or 1 times a thousand million allowed anything."""
    with pytest.raises(export.ExportError, match=r"parity .*tensor 'y': differs .* on real inputs"):
        export.tflite(
            tf.Module(), tmp_path / "m.tflite", signatures={"serving_default": (attention, TOKENS)}, quantize=mode,
            representative=masked(),
        )  # fmt: skip


def test_e2_a_file_of_zeros_is_not_proven(tmp_path):
    """Whatever the quantisation: by verify against the model."""

    def nothing(x, mask):
        return {"y": 0.0 * attention(x, tf.ones_like(mask))["y"]}

    real = masked()
    export.saved_model(tf.Module(), tmp_path / "golden", signatures={"serving_default": (attention, TOKENS)})
    settings = {"quantize": "int8", "representative": real}
    export.tflite(tf.Module(), tmp_path / "m", signatures={"serving_default": (nothing, TOKENS)}, **settings)
    with pytest.raises(export.ExportError, match="parity"):
        export.verify(tmp_path / "m", golden=tmp_path / "golden", representative=real)


def seen(expected, actual):
    variation = Variation()
    for pair in zip(expected, actual, strict=True):
        variation.see(*pair)
    return variation


def test_channels_that_the_bound_says_nothing_of():
    expected = np.float32(RNG.random([20, 5, 4]) * [100, 1, 100, 1])
    actual = expected * np.float32([1, 0, 1, 0])
    assert seen(expected, actual).unproven(2.0, INT8) == "[..., 1] and [..., 3]"
    assert seen(expected[..., 1:], actual[..., 1:]).unproven(2.0, INT8) == "[..., 0] and [..., 2]"
    assert seen(expected, actual).unproven(0.1, INT8) is None  # there the bound tells a constant from the values
    assert seen(expected, expected).unproven(2.0, INT8) is None  # the file follows them
    nearly = expected + np.float32(RNG.normal(0, 0.1, expected.shape))
    assert seen(expected, nearly).unproven(2.0, INT8) is None
    assert seen(expected[..., 1], 0 * expected[..., 1]).unproven(2.0, INT8) == ""  # all of it


def test_what_an_output_of_its_own_would_not_mend():
    constant = np.ones([20, 3], np.float32)
    assert seen([constant], [constant * 1.004]).unproven(1.0, INT8) is None
    assert seen([constant], [constant * 0.5]).unproven(1.0, INT8) == ""
    assert seen([0 * constant], [0 * constant + 0.1]).unproven(1.0, INT8) is None  # a channel of zeros
    few = np.float32(RNG.random([3, 2]) * [100, 1])
    assert seen([few], [few * np.float32([1, 0])]).unproven(2.0, INT8) is None  # too few to know their variance
    large = np.float32(RNG.random([20, 2]) * [1e3, 1e-5])
    assert seen([large], [large * np.float32([1, 0])]).unproven(2.0, FLOAT32) is None  # roundings of the other channel


def test_the_parts_of_a_distribution_are_one_quantity():
    """int8 loses small probabilities, which nobody minds."""
    logits = RNG.standard_normal([50, 30]) * 6
    probabilities = np.float32(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    rounded = np.round(probabilities * 256) / np.float32(256)
    assert seen([probabilities], [rounded]).unproven(0.05, INT8) is None
    assert seen([probabilities], [0 * rounded + np.float32(1 / 30)]).unproven(0.6, INT8) == ""


def test_classes_that_the_bound_says_nothing_of():
    classes = np.arange(60) % 3
    other = np.where(np.arange(60) < 50, 0, classes)
    assert seen([classes], [other]).unproven(0.7, INT8) == ""
    assert seen([classes], [other]).unproven(0.6, INT8) is None
    nearly = np.where(np.arange(60) < 10, 0, classes)
    assert seen([classes], [nearly]).unproven(0.7, INT8) is None
    words = np.array([b"a", b"b"] * 10, object)
    assert seen([words], [words]).unproven(1.0, INT8) is None
    assert seen([words], [words[::-1]]).unproven(1.0, INT8) == ""


def test_outputs_whose_last_axis_is_free():
    variation = seen([np.ones([4, 3], "f4"), np.zeros([4, 2], "f4")], [np.zeros([4, 3], "f4"), np.ones([4, 2], "f4")])
    assert variation.unproven(2.0, INT8) == ""
