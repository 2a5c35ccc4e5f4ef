"""batched_nms is torchvision's, box for box, in every mode; padding, ties, and boxes that cannot be compared."""

import numpy as np
import op_values
import pytest
import tensorflow as tf
from golden_values import Golden

from tftoolkit import custom_ops
from tftoolkit.custom_ops.batched_nms.cases import CASES, arguments, boxes_of, call_of
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import table

assert custom_ops.batched_nms  # loads the library
OP = ops.find("TfToolkit>BatchedNms")
NAN, INFINITY = float("nan"), float("inf")


def greedy(boxes, scores, classes, threshold):
    """The indices that are kept, in float64."""
    boxes, kept = boxes.astype(np.float64), []
    for i in np.argsort(-scores.astype(np.float64), kind="stable"):
        for j in kept:
            low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
            both = np.prod(np.maximum(0, high - low))
            areas = sum(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))
            if classes[i] == classes[j] and areas > both and both / (areas - both) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9])
def test_as_torchvision_does(threshold):
    golden = Golden("batched_nms", threshold)
    data = Golden.of("batched_nms")
    for max_output in (1200, 50):
        found = custom_ops.batched_nms(
            data.boxes, data.scores, data.classes, iou_threshold=threshold, max_output=max_output
        )
        count = min(max_output, len(golden.kept))
        assert found.count == count
        # Torchvision's order of equal scores is any.
        if max_output == 1200:
            np.testing.assert_array_equal(np.sort(found.indices[:count]), np.sort(golden.kept))
        np.testing.assert_array_equal(data.scores[found.indices[:count]], data.scores[golden.kept[:count]])
        np.testing.assert_array_equal(found.indices[count:], -1)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_against_float64(mode, dtype):
    rng = np.random.default_rng(0)
    boxes = tf.cast(boxes_of((3, 150, 4)), dtype)
    scores, classes = tf.cast(np.round(rng.random((3, 150)), 1), dtype), rng.integers(-2, 2, (3, 150))
    run = op_values.MODES[mode](lambda *x: custom_ops.batched_nms(*x, iou_threshold=0.3, max_output=150))
    found = run(boxes, scores, tf.constant(classes))
    for i in range(3):
        wide = tf.cast(boxes[i], tf.float64).numpy(), tf.cast(scores[i], tf.float64).numpy()
        right = greedy(*wide, classes[i], 0.3)
        np.testing.assert_array_equal(found.indices[i, : found.count[i]], right)
        np.testing.assert_array_equal(found.indices[i, found.count[i] :], -1)


@pytest.mark.slow
def test_cases():
    result = table.check_cases(OP, CASES, call_of=call_of)
    assert result.verdict == "ok", result.seen


def test_equal_scores_and_zeros_of_both_signs_are_in_the_order_of_their_indices():
    boxes = np.array([[i, 0, i + 0.5, 1] for i in range(6)], np.float32)
    scores = np.array([0.0, -0.0, 1.0, 0.0, 1.0, -0.0], np.float32)
    found = custom_ops.batched_nms(boxes, scores, iou_threshold=0.5, max_output=6)
    np.testing.assert_array_equal(found.indices, [2, 4, 0, 1, 3, 5])


def test_an_overlap_of_just_the_threshold_stays():
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1], [0, 0, 1.01, 1]], np.float32)  # 0.5, 0.505
    found = custom_ops.batched_nms(boxes, np.float32([3, 2, 1]), iou_threshold=0.5, max_output=3)
    np.testing.assert_array_equal(found.indices, [0, 1, -1])


def test_numbers_that_are_none_are_left_out_and_boxes_without_an_inside_overlap_nothing():
    boxes = np.array([[0, 0, 1, 1]] * 4 + [[1, 1, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 1, NAN]], np.float32)
    scores = np.array([0.5, NAN, -INFINITY, 0.4, 0.9, 0.8, 1.0], np.float32)
    found = custom_ops.batched_nms(boxes, scores, iou_threshold=0.0, max_output=5)
    np.testing.assert_array_equal(found.indices, [4, 5, 0, -1, -1])
    found = custom_ops.batched_nms(boxes, scores, iou_threshold=1.0, max_output=2, score_threshold=0.45)
    np.testing.assert_array_equal(found.indices, [4, 5])
    assert found.count == 2


def test_no_boxes_and_no_sets():
    none = custom_ops.batched_nms(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), iou_threshold=0.5, max_output=3
    )
    np.testing.assert_array_equal(none.indices, [-1] * 3)
    empty = np.zeros((0, 7, 4), np.float32)
    assert custom_ops.batched_nms(empty, empty[..., 0], iou_threshold=0.5, max_output=3).indices.shape == (0, 3)
    assert custom_ops.batched_nms([[0.0, 0, 1, 1]], [1.0], iou_threshold=0.5, max_output=0).count == 0


@pytest.mark.parametrize(
    "options", [{"iou_threshold": -0.1}, {"iou_threshold": NAN}, {"max_output": -1}, {"score_threshold": NAN}]
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        custom_ops.batched_nms([[0.0, 0, 1, 1]], [1.0], **{"iou_threshold": 0.5, "max_output": 1, **options})


def test_wrong_shapes():
    with pytest.raises(tf.errors.InvalidArgumentError, match="scores"):
        custom_ops.batched_nms([[0.0, 0, 1, 1]], [1.0, 2.0], iou_threshold=0.5, max_output=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="boxes"):
        custom_ops.batched_nms([[0.0, 0, 1]], [1.0], iou_threshold=0.5, max_output=1)


@pytest.mark.slow
def test_opcheck():
    inputs, attributes = arguments()
    custom_ops.opcheck(OP, *inputs, **attributes)
