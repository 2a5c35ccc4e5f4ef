"""Every built-in CUDA kernel passes its cases in emulation; test_mutants.py plants mistakes in them."""

import functools
import importlib
import math
import re

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import library, ops
from tftoolkit.custom_ops.opcheck import pytest_checks, table

FOLDERS = [folder for folder in library.builtin_folders() if library.has_cuda(folder)]
SMALL = 2048  # elements


def cases_module(folder: str):
    return importlib.import_module(f"tftoolkit.custom_ops.{folder}.cases")


def opened(folder: str):
    getattr(custom_ops, folder)  # attaches references and gradients
    return library.load_builtin(folder)


def small(folder: str) -> list:
    """Those that are quick: the first shape in all dtypes, the others in one dtype each, in turn."""
    found, shapes = [], {}
    for case in cases_module(folder).CASES:
        if math.prod(case.shape) < SMALL:
            number, seen = shapes.setdefault(case.shape, (len(shapes), []))
            seen.append(case)
    for number, seen in shapes.values():
        found += seen if number == 0 else [seen[number % len(seen)]]
    return found


def some(chosen) -> list:
    return [pytest.param(*one, id="-".join([one[0], *map(str, one[1].shape), one[1].dtype])) for one in chosen]


SLOW = [(folder, case) for folder in FOLDERS for case in small(folder)]
REST = [(folder, case) for folder in FOLDERS for case in cases_module(folder).CASES if (folder, case) not in SLOW]


EMPTY = [(folder, case) for folder in FOLDERS for case in getattr(cases_module(folder), "EMPTY_CASES", ())]


def run_case(folder: str, case, seed: int, max_blocks: int) -> None:
    """With both: threads in order and a grid as large as wanted, threads in a random order and a small grid."""
    within = [
        functools.partial(emulation.settings, seed=0),
        functools.partial(emulation.settings, seed=seed, max_blocks=max_blocks),
    ]
    call_of = getattr(cases_module(folder), "call_of", None)
    for op in map(opened(folder).op, opened(folder).schemas):
        if emulation.has_kernel(op):
            result = table.check_cases(emulation.twin(op), [case], call_of=call_of, within=within)
            assert result.verdict == "ok", f"{op.name}: {result.seen}"


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "case"), some(SLOW))
def test_small_cases(folder, case, random_seed):
    run_case(folder, case, random_seed, max_blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "case"), some(EMPTY))
def test_nothing_to_do(folder, case):
    """A grid without blocks is an error on a GPU, and in emulation."""
    run_case(folder, case, seed=0, max_blocks=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("folder", "case"), some(REST))
def test_all_other_cases(folder, case, random_seed):
    run_case(folder, case, random_seed, max_blocks=3)


RNG = np.random.default_rng(0)
X, Y = (RNG.standard_normal((3, 8)).astype(np.float32) for _ in range(2))
GAMMA, BIAS = (RNG.standard_normal(8).astype(np.float32) for _ in range(2))
LABELS = np.array([5, -100, 0], np.int32)
KEY = np.array([3, -4], np.int32)
HEADS, POSITIONS = RNG.standard_normal((2, 3, 9, 8)).astype(np.float32), np.array([[0, 5, 70_000]] * 2, np.int64)
POINTS = RNG.uniform(-1.2, 1.2, (1, 2, 5, 2)).astype(np.float32)
# The others run on the result of one kernel, or on the reference. Ops that share kernels take turns: the rest is
# exhaustive.
KERNEL = ["runs", "empty", "sizes", "gradient"]
emulated_checks = functools.partial(pytest_checks, checks=KERNEL, device="emulated")

# Graphs and XLA are the host's business, and one op stands for all.
test_rms_norm = pytest.mark.slow(emulated_checks(custom_ops.rms_norm, X, GAMMA, checks=[*KERNEL, "modes"]))
test_bias_rms_norm = pytest.mark.exhaustive(emulated_checks(custom_ops.rms_norm, X, GAMMA, bias=BIAS))
test_add_rms_norm = pytest.mark.exhaustive(emulated_checks(custom_ops.rms_norm, X, GAMMA, bias=BIAS, residual=Y))
test_layer_norm = pytest.mark.exhaustive(emulated_checks(custom_ops.layer_norm, X, GAMMA, BIAS))
test_add_layer_norm = pytest.mark.slow(emulated_checks(custom_ops.layer_norm, X, GAMMA, BIAS, residual=Y))
test_swiglu = pytest.mark.slow(emulated_checks(custom_ops.swiglu, X, Y))
test_geglu = pytest.mark.exhaustive(emulated_checks(custom_ops.geglu, X, Y))
test_rotary_embedding = pytest.mark.slow(emulated_checks(custom_ops.rotary_embedding, HEADS, POSITIONS, dim=6))
test_softmax_cross_entropy = pytest.mark.slow(
    emulated_checks(custom_ops.softmax_cross_entropy, LABELS, X, label_smoothing=0.1, z_loss=0.01)
)
test_dropout_add = pytest.mark.slow(emulated_checks(custom_ops.dropout_add, X, Y, KEY, rate=0.3))

test_grid_sample = pytest.mark.exhaustive(
    emulated_checks(custom_ops.grid_sample, RNG.standard_normal((1, 3, 4, 3)).astype(np.float32), POINTS)
)


@pytest.mark.slow
def test_what_is_not_finite_reaches_its_pixels_only():
    """Their gradients, added up in whole numbers elsewhere: infinite, of both signs NaN."""
    dy = np.array([[np.inf, 1.0], [-np.inf, np.inf], [np.nan, 2.0], [1e-30, 3.0]], np.float32).reshape(1, 1, 4, 2)
    grid = np.array([[-1, -1], [-1, -1], [1, 1], [0.9, -1]], np.float32).reshape(1, 1, 4, 2)
    gradient = emulation.twin(ops.find("TfToolkit>GridSampleGrad"))
    image = np.zeros((1, 3, 3, 2), np.float32)
    found, _ = gradient(dy, image, grid, mode=0)
    right, _ = ops.find("TfToolkit>GridSampleGrad")(dy, image, grid, mode=0)
    np.testing.assert_allclose(found, right, atol=1e-12)  # 1e-30 is nothing beside 3
    np.testing.assert_array_equal(found[0, 0, 0], [np.nan, np.inf])


@pytest.mark.slow
@pytest.mark.parametrize("mode", [lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)])
def test_the_public_function_and_its_gradient(mode):
    def run(x, gamma):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = tf.sin(custom_ops.rms_norm(x, gamma))
        return [y, *tape.gradient(y, [x, gamma])]

    x, gamma = tf.constant(X), tf.constant(GAMMA)
    expected = run(x, gamma)
    with emulation.emulated(ops.find("TfToolkit>RmsNorm")):
        actual = mode(run)(x, gamma)
        graph = tf.function(run).get_concrete_function(x, gamma).graph.as_graph_def()
    functions = [function.node_def for function in graph.library.function]
    used = {node.op for nodes in [graph.node, *functions] for node in nodes}
    assert {"TfToolkitEmulated>RmsNorm", "TfToolkitEmulated>RmsNormGrad"} <= used
    assert not {"TfToolkit>RmsNorm", "TfToolkit>RmsNormGrad"} & used
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("key", [np.array([3, -4], np.int32), np.array([2**40 + 7, -(2**33)], np.int64)])
def test_dropout_keeps_what_it_keeps_on_the_cpu(dtype, key):
    x = tf.ones([5, 211], dtype)
    kept = custom_ops.dropout_add(x, tf.zeros_like(x), key, rate=0.3)
    with emulation.emulated(ops.find("TfToolkit>DropoutAdd")), emulation.settings(seed=1):
        np.testing.assert_array_equal(custom_ops.dropout_add(x, tf.zeros_like(x), key, rate=0.3), kept)


@pytest.mark.slow
def test_labels_and_positions_that_a_kernel_refuses():
    """The first of them is named, as on the CPU."""
    labels = tf.constant([3, 8, -100, -1, 9], tf.int32)
    logits, heads = tf.ones([5, 8]), tf.ones([2, 3, 1, 4])
    positions = tf.constant([[0, 1, 2**31], [-(2**40), 0, 0]], tf.int64)
    for name, call in {
        "SoftmaxCrossEntropy": lambda: custom_ops.softmax_cross_entropy(labels, logits),
        "RotaryEmbedding": lambda: custom_ops.rotary_embedding(heads, positions),
    }.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as on_cpu:
            call()
        with emulation.emulated(ops.find(f"TfToolkit>{name}")), pytest.raises(tf.errors.InvalidArgumentError) as found:
            call()
        (said,) = re.findall(r"(?:labels|positions) .*(?= \[Op:)", str(on_cpu.value))
        assert said in str(found.value)


@pytest.mark.slow
def test_the_gradient_of_a_label_that_is_no_class_is_nan():
    custom_ops.softmax_cross_entropy  # noqa: B018 (attaches references)
    gradient = emulation.twin(ops.find("TfToolkit>SoftmaxCrossEntropyGrad"))
    row = tf.ones([3])
    found = gradient(tf.ones([3, 4]), tf.constant([0, 4, -100]), row, row, row, row)
    np.testing.assert_array_equal(np.isnan(found), [[False] * 4, [True] * 4, [False] * 4])
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.slow
def test_ctc_sequences_that_a_kernel_cannot_take_are_nan():
    """Nobody waits for an error; the others are as on the CPU."""
    logits = tf.constant(RNG.standard_normal((5, 6, 4)), tf.float32)
    labels = tf.constant([[1, 2], [1, 4], [0, 1], [3, 3], [2, 1]])
    frames, counts = tf.constant([6, 6, 6, 7, 5]), tf.constant([2, 2, 1, 2, -1])

    def run(logits, labels, frames, counts):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = custom_ops.ctc_loss(logits, labels, frames, counts)
        return loss.numpy(), tape.gradient(loss, logits).numpy()

    right = run(logits[:1], labels[:1], frames[:1], counts[:1])
    with emulation.emulated(ops.find("TfToolkit>CtcLoss")):
        loss, gradient = run(logits, labels, frames, counts)
        # What is left of labels one behind the other, too many of them, is the last sequence's.
        flat_loss, _ = run(logits[:2], [1, 2, 3], frames[:2], tf.constant([2, 0]))
    np.testing.assert_array_equal(np.isnan(loss), [False, True, True, True, True])
    np.testing.assert_array_equal(np.isnan(gradient).all((1, 2)), [False, True, True, True, True])
    np.testing.assert_allclose(loss[0], right[0][0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], right[1][0], atol=1e-6)
    np.testing.assert_array_equal(np.isnan(flat_loss), [False, True])
