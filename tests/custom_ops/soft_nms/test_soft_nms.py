"""soft_nms against the paper's loop in float64, in every mode; padding, ties, and boxes that cannot be compared."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table
from tftoolkit.custom_ops.soft_nms.cases import CASES, arguments, boxes_of, call_of

assert custom_ops.soft_nms  # loads the library
OP = ops.find("TfToolkit>SoftNms")
NAN = float("nan")
OPTIONS = [
    {"method": "linear", "iou_threshold": 0.2},
    {"method": "gaussian", "sigma": 0.3},
    {"method": "linear", "iou_threshold": 0.0, "score_threshold": 0.2},
]


def soft(boxes, scores, classes, method="linear", iou_threshold=0.3, sigma=0.5, score_threshold=0.001):
    """Indices and scores, as in the paper's figure 2, in float64."""
    boxes, scores, found = boxes.astype(np.float64), scores.astype(np.float64), []
    left = [i for i in range(len(scores)) if scores[i] > score_threshold]
    while left:
        best = left[int(np.argmax(scores[left]))]
        found.append((best, scores[best]))
        left.remove(best)
        for i in left:
            low, high = np.maximum(boxes[i, :2], boxes[best, :2]), np.minimum(boxes[i, 2:], boxes[best, 2:])
            both = np.prod(np.maximum(0, high - low))
            overlap = both / (sum(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, best)) - both)
            if classes[i] != classes[best] or not overlap > 0:
                continue
            if method == "gaussian":
                scores[i] *= np.exp(-(overlap**2) / sigma)
            elif overlap > iou_threshold:
                scores[i] *= 1 - overlap
        left = [i for i in left if scores[i] > score_threshold]
    return found


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_float64(mode, dtype, options):
    rng = np.random.default_rng(0)
    boxes, scores = tf.cast(boxes_of((3, 60, 4)), dtype), tf.cast(rng.random((3, 60)), dtype)
    classes = rng.integers(0, 2, (3, 60))
    run = op_values.MODES[mode](lambda *x: custom_ops.soft_nms(*x, max_output=70, **options))
    found = run(boxes, scores, tf.constant(classes))
    for i in range(3):
        wide = tf.cast(boxes[i], tf.float64).numpy(), tf.cast(scores[i], tf.float64).numpy()
        right = soft(*wide, classes[i], **options)
        count = int(found.count[i])
        np.testing.assert_array_equal(found.indices[i, :count], [index for index, _ in right])
        np.testing.assert_allclose(found.scores_kept[i, :count], [score for _, score in right], rtol=3e-5)
        np.testing.assert_array_equal(found.indices[i, count:], -1)
        np.testing.assert_array_equal(found.scores_kept[i, count:], 0)


def test_max_output_takes_the_first():
    boxes, scores = boxes_of((40, 4)).astype(np.float32), np.random.default_rng(0).random(40).astype(np.float32)
    many, few = (custom_ops.soft_nms(boxes, scores, max_output=n) for n in (40, 7))
    np.testing.assert_array_equal(few.indices, many.indices[:7])
    assert few.count == 7


@pytest.mark.slow
def test_cases():
    result = table.check_cases(OP, CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_ties_numbers_that_are_none_and_boxes_without_an_inside(method):
    boxes = np.array(
        [[2, 2, 3, 3], [0, 0, 1, 1], [1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, NAN], [5, 5, 6, 6]], np.float32
    )
    scores = np.array([0.5, 0.5, 0.4, 0.3, 1.0, NAN], np.float32)
    found = custom_ops.soft_nms(boxes, scores, max_output=6, method=method)
    np.testing.assert_array_equal(found.indices, [0, 1, 2, 3, -1, -1])
    np.testing.assert_array_equal(found.scores_kept, np.float32([0.5, 0.5, 0.4, 0.3, 0, 0]))


def test_no_boxes_and_no_sets():
    none = custom_ops.soft_nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), max_output=2)
    np.testing.assert_array_equal(none.indices, [-1, -1])
    assert (
        custom_ops.soft_nms(np.zeros((0, 3, 4), np.float32), np.zeros((0, 3), np.float32), max_output=2).count.shape
        == 0
    )


@pytest.mark.parametrize(
    "options",
    [{"method": "hard"}, {"iou_threshold": 2}, {"sigma": 0.0}, {"score_threshold": -1}, {"max_output": -1}],
    ids=str,
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        custom_ops.soft_nms([[0.0, 0, 1, 1]], [1.0], **{"max_output": 1, **options})


def test_there_is_no_gradient():
    scores = tf.constant([1.0, 0.5])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        kept = custom_ops.soft_nms([[0.0, 0, 1, 1]] * 2, scores, max_output=2).scores_kept
    with pytest.raises(NotImplementedError, match="soft_nms has no gradient"):
        tape.gradient(kept, scores)


@pytest.mark.slow
def test_opcheck():
    inputs, attributes = arguments()
    custom_ops.opcheck(OP, *inputs, **attributes)
