"""softmax_cross_entropy against float64, in every mode; ignored rows, smoothing, z-loss, infinities, bad labels."""

import numpy as np
import op_values
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.opcheck import arguments
from tftoolkit.custom_ops.softmax_cross_entropy.cases import CASES

assert custom_ops.softmax_cross_entropy  # loads the library
OPS = [ops.find(f"TfToolkit>{name}") for name in ("SoftmaxCrossEntropy", "SoftmaxCrossEntropyGrad")]
FAST = CASES[:9]
OPTIONS = [{}, {"label_smoothing": 0.1}, {"z_loss": 1e-2, "label_smoothing": 0.25, "ignore_index": 0}]


def plain(logits, labels, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    """In the dtype of the logits, with all the temporaries that the op does without."""
    counts = labels != ignore_index
    logits = tf.where(counts[..., None], logits, 0)
    classes = logits.shape[-1]
    target = tf.one_hot(labels, classes, dtype=logits.dtype) * (1 - label_smoothing) + label_smoothing / max(1, classes)
    loss = -tf.reduce_sum(target * tf.nn.log_softmax(logits), -1) + z_loss * tf.reduce_logsumexp(logits, -1) ** 2
    return tf.where(counts, loss, 0)


def tensors(case, dtype="int32", scale=3.0):
    """Logits and labels, a quarter of which is to be ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, max(1, case.shape[-1]), case.shape[:-1])
    labels = np.where(rng.random(case.shape[:-1]) < 0.25, -100, labels)
    return scale * op_values.normal(case.shape, case.dtype), tf.constant(labels, dtype)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case not in FAST)) for case in CASES])
def test_values_and_gradients(case, mode):
    for options in OPTIONS:
        logits, labels = tensors(case)
        labels = tf.where(labels == -100, 0, labels) if "ignore_index" in options else labels
        op_values.check(
            lambda logits, labels=labels, options=options: custom_ops.softmax_cross_entropy(labels, logits, **options),
            lambda logits, labels=labels, options=options: plain(logits, labels, **options),
            [logits], mode,
        )  # fmt: skip


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_as_tensorflow_does(dtype):
    logits, labels = tensors(CASES[0], dtype)
    labels = tf.maximum(labels, 0)
    right = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    np.testing.assert_allclose(custom_ops.softmax_cross_entropy(labels, logits), right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
def test_a_common_offset_costs_no_digits(offset):
    """Offsets as these are multiples of the step of logits / 16, so that nothing was lost before."""
    logits = tf.round(16 * op_values.normal((4, 3000), "float32")) / 16 + offset
    labels = tf.constant([0, 5, 2047, 2999])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = custom_ops.softmax_cross_entropy(labels, logits)
    wide = tf.cast(logits, tf.float64)
    np.testing.assert_allclose(loss, plain(wide, labels), rtol=5e-7)
    right = tf.nn.softmax(wide) - tf.one_hot(labels, 3000, dtype=tf.float64)
    np.testing.assert_allclose(tape.gradient(loss, logits), right, rtol=1e-6, atol=1e-9)


def test_ignored_rows_count_for_nothing_whatever_they_hold():
    logits = tf.constant([[1.0, 2.0], [np.nan, np.inf], [0.0, -np.inf]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = custom_ops.softmax_cross_entropy([0, -100, 0], logits)
    np.testing.assert_allclose(loss, [np.log1p(np.e), 0, 0], rtol=1e-6)
    gradient = tape.gradient(loss, logits)
    np.testing.assert_array_equal(gradient[1:], [[0, 0], [0, 0]])
    share = 1 / (1 + np.e)
    np.testing.assert_allclose(gradient[0], [share - 1, 1 - share], rtol=1e-6)


def test_masked_classes_and_what_is_not_finite():
    """Blocks without any finite logit, which have no maximum; NaN and infinity come out."""
    masked = np.full((2, 6000), -np.inf, np.float32)
    masked[0, 5000:5002] = -1000.0
    masked[1, 0] = 3.0
    loss = custom_ops.softmax_cross_entropy([5000, 0], masked)
    np.testing.assert_allclose(loss, [np.log(2), 0], rtol=1e-6)
    bad = np.zeros((3, 6000), np.float32)
    bad[0, 4000], bad[1, 17], bad[2] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(custom_ops.softmax_cross_entropy([0, 0, 0], bad), [np.nan, np.inf, np.nan])


@pytest.mark.slow
@pytest.mark.parametrize("op", [op_values.opcheck_parameter(op) for op in OPS])
def test_opcheck(op):
    inputs, attributes = arguments.make(op, (3, 5, 8), "float32")
    custom_ops.opcheck(op, *inputs, **attributes)


def test_second_order_gradient():
    logits, labels = tensors(CASES[0])

    def penalty(loss):
        with tf.GradientTape() as outer:
            outer.watch(logits)
            with tf.GradientTape() as inner:
                inner.watch(logits)
                value = tf.reduce_sum(tf.sin(loss()))
            total = tf.reduce_sum(inner.gradient(value, logits) ** 2)
        return outer.gradient(total, logits)

    found = penalty(lambda: custom_ops.softmax_cross_entropy(labels, logits, label_smoothing=0.1, z_loss=0.01))
    right = penalty(lambda: plain(logits, labels, label_smoothing=0.1, z_loss=0.01))
    np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", op_values.MODES)
@pytest.mark.parametrize("label", [5, -1, 2**31 - 1])
def test_a_label_that_is_no_class(label, mode):
    run = op_values.MODES[mode](lambda labels: custom_ops.softmax_cross_entropy(labels, tf.zeros([2, 5])))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=rf"labels holds {label} \(element 1\), but must hold classes"
    ):
        run(tf.constant([0, label]))


def test_wrong_arguments():
    logits = np.zeros((2, 5), np.float32)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels has shape \[3\]"):
        custom_ops.softmax_cross_entropy([0, 1, 2], logits)
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels holds 0"):
        custom_ops.softmax_cross_entropy([0], np.zeros((1, 0), np.float32))
    for options, message in [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        ({"z_loss": -1.0}, "z_loss must not be negative, got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            custom_ops.softmax_cross_entropy([0, 1], logits, **options)
