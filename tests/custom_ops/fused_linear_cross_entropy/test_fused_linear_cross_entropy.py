"""fused_linear_cross_entropy against float64, at about the plain computation's error; ignored tokens, bad input."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but
from cross_entropy import MODES, assert_as_good_as, float64, fused, given, plain, run

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.fused_linear_cross_entropy.cases import ARGUMENTS, CASES, DTYPES, EMPTY_CASES, Case

EVERY = [dataclasses.replace(case, dtype=dtype) for dtype in DTYPES for case in CASES]
FAST = (*EVERY[: len(CASES)], EVERY[len(CASES) + 3], EVERY[2 * len(CASES) + 2])


def check(case: Case, magnitude: float = 1.0, mode: str = "eager") -> None:
    tensors, labels, class_weight = given(case, magnitude)
    rng = np.random.default_rng(1)
    upstream = [rng.standard_normal(case.rows).astype(np.float32) for _ in range(2)]
    exact = float64(case, tensors, labels, class_weight, *upstream)
    of = fused(case, labels, class_weight, reduction="none", return_lse=True), plain(case, labels, class_weight)
    found, naive = (run(one, case, tensors, upstream, mode) for one in of)
    assert_as_good_as(found, naive, exact, case.dtype)


@pytest.mark.parametrize("case", slow_but(EVERY, *FAST))
def test_losses_and_gradients(case):
    check(case)


@pytest.mark.parametrize("magnitude", [1e4, 1e-4])
@pytest.mark.parametrize("case", [CASES[2], pytest.param(CASES[3], marks=pytest.mark.slow)])
def test_logits_of_any_size(case, magnitude):
    check(case, magnitude)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("case", [CASES[3], dataclasses.replace(CASES[5], dtype="bfloat16")])
def test_in_graphs(case, mode):
    check(case, mode=mode)


@pytest.mark.parametrize("mode", ["eager", pytest.param("graph", marks=pytest.mark.slow), "xla"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", [CASES[0], dataclasses.replace(CASES[4], dtype="bfloat16")])
def test_a_mean_is_computed_with_its_gradients(case, reduction, mode):
    tensors, labels, class_weight = given(case)
    counts = labels != dict(case.options).get("ignore_index", -100)
    weights = np.ones(case.classes) if class_weight is None else class_weight.astype(np.float64)
    share = 1 / np.sum(weights[labels[counts]]) if reduction == "mean" else 1.0
    loss, _, *gradients = float64(case, tensors, labels, class_weight, share)
    function = fused(case, labels, class_weight, reduction=reduction)
    stored = 2.0**-8 if case.dtype == "bfloat16" else 0
    for factor in (1.0, -3.0):
        found = run(function, case, tensors, [np.float32(factor)], mode)
        for one, right in zip(found[1:], gradients, strict=True):
            limit = (2 * stored + 1e-6) * np.abs(factor * right).max()
            np.testing.assert_allclose(one, factor * right, atol=limit, rtol=0)
        np.testing.assert_allclose(found[0], loss.sum() * share, rtol=1e-6)
    with tf.GradientTape() as tape:  # it also has no gradient where nobody asks for one
        alone = function(*(tf.cast(x, case.dtype) for x in tensors))
    outside = function(*(tf.cast(x, case.dtype) for x in tensors))
    assert tape.gradient(alone, tf.zeros([])) is None
    np.testing.assert_allclose(outside, alone, rtol=1e-6)


def test_gradients_of_a_loss_that_was_traced_without_a_tape():
    tensors, labels, _ = given(CASES[0])
    traced = tf.function(fused(CASES[0], labels, None))
    traced(*tensors)
    found, expected = (run(f, CASES[0], tensors, [np.float32(1)]) for f in (traced, fused(CASES[0], labels, None)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_as_tensorflow_does():
    (inputs, weight), _, _ = given(CASES[0])
    labels = tf.constant([[1, 2, 3], [10, 0, 5]], tf.int64)
    logits = tf.matmul(inputs, tf.broadcast_to(weight, [2, 11, 5]), transpose_b=True)
    right = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    found = custom_ops.fused_linear_cross_entropy(labels, inputs, weight, reduction="none")
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counting", [(), (17,), (3, 299)])
def test_most_or_all_tokens_ignored(counting):
    """Those that do not count may hold anything."""
    rng = np.random.default_rng(0)
    inputs = np.full((300, 6), np.nan, np.float32)
    labels = np.full(300, -100, np.int32)
    for row in counting:
        inputs[row], labels[row] = rng.standard_normal(6), row % 9
    weight = rng.standard_normal((9, 6)).astype(np.float32)
    rows = list(counting)
    small = fused(CASES[0], labels[rows], None)
    loss, dinputs, dweight = run(fused(CASES[0], labels, None), CASES[0], [inputs, weight], [np.float32(1)])
    if not counting:
        assert loss == 0 and not dinputs.any() and not dweight.any()  # noqa: PT018
        return
    expected = run(small, CASES[0], [inputs[rows], weight], [np.float32(1)])
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)
    np.testing.assert_allclose(dinputs[rows], expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dweight, expected[2], rtol=1e-5, atol=1e-7)
    assert not np.delete(dinputs, rows, 0).any()


def test_masked_classes_and_what_is_not_finite():
    inputs, weight = np.zeros((4, 2), np.float32), np.ones((400, 2), np.float32)
    bias = np.full(400, -np.inf, np.float32)
    bias[[5, 399]] = -1000.0, -1000.0
    loss, lse = custom_ops.fused_linear_cross_entropy(
        [5, 399, 0, -100], inputs, weight, bias, reduction="none", return_lse=True
    )
    np.testing.assert_allclose(loss, [np.log(2), np.log(2), np.inf, 0], rtol=1e-6)
    np.testing.assert_allclose(lse[:3], np.log(2) - 1000, rtol=1e-6)
    found = run(fused(CASES[0], [5, 399, 5, 5], None), CASES[0], [inputs, weight, bias], [np.float32(1)])
    assert all(np.isfinite(one).all() for one in found)
    inputs[1, 0], inputs[2, 1] = np.nan, np.inf
    found = custom_ops.fused_linear_cross_entropy([0, 0, 0, 0], inputs, weight, reduction="none")
    np.testing.assert_allclose(found, [np.log(400), np.nan, np.nan, np.log(400)], rtol=1e-6)
    loss, dinputs, dweight = run(fused(CASES[0], [0, 0, -100, 0], None), CASES[0], [inputs, weight], [np.float32(1)])
    assert np.isnan(loss) and np.isnan(dinputs[1]).all() and np.isnan(dweight).all()  # noqa: PT018
    assert np.isfinite(dinputs[[0, 2, 3]]).all()


@pytest.mark.parametrize("case", EMPTY_CASES)
def test_nothing_in_it(case):
    tensors, labels, class_weight = given(case)
    upstream = [np.ones(case.rows, np.float32)] * 2
    of = fused(case, labels, class_weight, reduction="none", return_lse=True)
    exact = float64(case, tensors, labels, class_weight, *upstream)
    for one, right in zip(run(of, case, tensors, upstream), exact, strict=True):
        np.testing.assert_allclose(one, right, rtol=1e-5, atol=1e-6)
    mean = exact[0].sum() / max(1, np.sum(labels != -100))
    assert float(fused(case, labels, class_weight)(*tensors)) == pytest.approx(mean, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["FusedLinearCrossEntropy", pytest.param("FusedLinearCrossEntropyGrad", marks=pytest.mark.exhaustive)]
)
def test_opcheck(name):
    inputs, attributes = ARGUMENTS[name]()
    custom_ops.opcheck(ops.find(f"TfToolkit>{name}"), *inputs, **attributes)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_order_gradient(reduction):
    case = CASES[0]
    tensors, labels, _ = given(case)
    inputs, weight = (tf.constant(x) for x in tensors)

    def penalty(loss):
        with tf.GradientTape() as outer:
            outer.watch([inputs, weight])
            with tf.GradientTape() as inner:
                inner.watch([inputs, weight])
                value = tf.reduce_sum(tf.sin(loss(inputs, weight)))
            total = sum(tf.reduce_sum(one**2) for one in inner.gradient(value, [inputs, weight]))
        return outer.gradient(total, [inputs, weight])

    def naive(inputs, weight):
        losses, _ = plain(case, labels, None)(inputs, weight)
        return (
            losses if reduction == "none" else tf.reduce_sum(losses) / tf.reduce_sum(tf.cast(labels != -100, "float32"))
        )

    found, right = penalty(fused(case, labels, None, reduction=reduction)), penalty(naive)
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("label", [11, -1, 2**31 - 1])
def test_a_label_that_is_no_class(label, mode):
    (inputs, weight), labels, _ = given(CASES[0])
    labels[1, 0] = label
    message = rf"labels holds {label} \(element 3\), but must hold classes, from 0 to below 11"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        MODES[mode](fused(CASES[0], labels, None))(inputs, weight)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run(fused(CASES[0], labels, None), CASES[0], [inputs, weight], [np.float32(1)], mode)


def test_wrong_arguments():
    (inputs, weight), labels, _ = given(CASES[0])

    def call(labels=labels, inputs=inputs, weight=weight, bias=None, **options):
        return custom_ops.fused_linear_cross_entropy(labels, inputs, weight, bias, **options)

    for options, message in [
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and less than 1, got 1.0"),
        ({"z_loss": -1.0}, "z_loss must not be negative, got -1.0"),
        ({"logit_softcap": -2.0}, "logit_softcap must be positive, or None, got -2.0"),
        ({"reduction": "avg"}, 'reduction must be "mean", "sum" or "none", got \'avg\''),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**options)
    with pytest.raises(TypeError, match="z_loss must be a number, got 'much'"):
        call(z_loss="much")
    for options, message in [
        ({"labels": labels[:1]}, "labels has shape"),
        ({"weight": weight[:, :3]}, "weight has shape"),
        ({"bias": np.zeros(3, np.float32)}, "bias has"),
        ({"class_weight": np.zeros(3, np.float32)}, "class_weight has"),
    ]:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(**options)
        with tf.GradientTape(), pytest.raises(tf.errors.InvalidArgumentError, match=message):
            call(**options)


MEMORY = """
import resource, sys
import numpy as np, tensorflow as tf
from tftoolkit import custom_ops
def step(rows, classes):
    inputs, weight = tf.ones([rows, 64]), tf.ones([classes, 64])
    with tf.GradientTape() as tape:
        tape.watch([inputs, weight])
        loss = custom_ops.fused_linear_cross_entropy(tf.zeros([rows], tf.int32), inputs, weight)
    tape.gradient(loss, [inputs, weight])
step(4, 5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(8192, 20000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_logits_are_never_held_as_a_whole():
    """They would take 655 MB, and their gradient as much; inputs, weights and their gradients take 15."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 100


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    selected = ["test_losses_and_gradients", "test_masked"]
    environment = {**os.environ, "TFTOOLKIT_ISA": isa}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", " or ".join(selected)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
