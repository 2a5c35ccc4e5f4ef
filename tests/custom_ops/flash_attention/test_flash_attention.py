"""flash_attention against float64, at about the error of the plain computation; masks, borders, bad input."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from attention import assert_as_good_as, float64, fused, given, plain, run
from covering import slow_but

from tftoolkit import custom_ops
from tftoolkit.custom_ops.flash_attention.cases import CASES, DTYPES, EMPTY_CASES, case

EVERY = [dataclasses.replace(case, dtype=dtype) for dtype in DTYPES for case in CASES]
FAST = (*EVERY[: len(CASES)], EVERY[len(CASES) + 3], EVERY[2 * len(CASES) + 6])


@pytest.mark.parametrize("case", slow_but(EVERY, *FAST))
def test_values_and_gradients(case):
    inputs, upstream = given(case)
    exact = float64(case, inputs, upstream)
    found, naive = (run(f(case), case, inputs, upstream) for f in (fused, plain))
    assert_as_good_as(found, naive, exact, case.dtype)


@pytest.mark.parametrize("magnitude", [1e4, 1e-4])
def test_large_and_tiny_scores(magnitude):
    one = case(1, 200, 300, 2, 2, 64, 64, causal=True)
    inputs, upstream = given(one, magnitude)
    found, naive = (run(f(one), one, inputs, upstream) for f in (fused, plain))
    assert_as_good_as(found, naive, float64(one, inputs, upstream), "float32")


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_modes_give_the_same_bits(mode):
    one = CASES[11]
    inputs, upstream = given(one)
    eager = run(fused(one), one, inputs, upstream)
    for found, expected in zip(run(fused(one), one, inputs, upstream, mode), eager, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("case", EMPTY_CASES, ids=map(str, EMPTY_CASES))
def test_nothing_to_do(case):
    inputs, upstream = given(case)
    found = run(fused(case), case, inputs, upstream)
    assert found[0].shape == (*case.shape[:3], case.value_depth)
    assert [x.shape for x in found[2:]] == [x.shape for x in inputs]
    if case.keys == 0:
        assert not found[0].any()
        assert np.isneginf(found[1]).all()


def test_what_stands_behind_the_lengths_is_not_looked_at():
    one = case(2, 30, 64, 2, 1, 16, 16, lengths=(40, 0))
    (q, k, v), upstream = given(one)
    clean = run(fused(one), one, [q, k, v], upstream)
    k[0, 40:] = v[0, 40:] = k[1] = v[1] = np.nan
    for found, expected in zip(run(fused(one), one, [q, k, v], upstream), clean, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not clean[0][1].any()  # the second sequence has no key
    assert not clean[3][0, 40:].any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFFFFFFF])
def test_nan_of_any_kind_makes_nan(bits):
    one = case(1, 20, 30, 1, 1, 8, 8)
    (q, k, v), _ = given(one)
    q[0, 3, 0, 2] = np.array(bits, np.uint32).view(np.float32)
    o = custom_ops.flash_attention(q, k, v).numpy()
    assert np.isnan(o[0, 3]).all()
    assert np.isfinite(np.delete(o, 3, 1)).all()
    k[0, 29, 0, 0] = np.nan
    assert np.isnan(custom_ops.flash_attention(q, k, v)).all()


def test_minus_infinity_in_the_bias_is_a_mask():
    one = case(1, 70, 80, 2, 2, 16, 16)
    (q, k, v), _ = given(one)
    mask = np.random.default_rng(1).random((1, 1, 70, 80)) < 0.5
    mask[0, 0, 5] = False
    o = custom_ops.flash_attention(q, k, v, bias=np.where(mask, 0, -np.inf).astype(np.float32)).numpy()
    assert not o[0, 5].any()
    expected = custom_ops.flash_attention(q[:, 7:8], k[:, mask[0, 0, 7]], v[:, mask[0, 0, 7]])
    np.testing.assert_allclose(o[0, 7], expected[0, 0], rtol=1e-5, atol=1e-6)


BORDERS = ([0, 5, 5, 105, 140], [0, 9, 29, 229, 260])


@pytest.mark.parametrize("settings", [{}, {"causal": True, "window": 30}, {"softcap": 4.0}], ids=str)
def test_sequences_without_padding_are_as_each_by_itself(settings):
    rng = np.random.default_rng(0)
    q, k, v, d_o = (rng.standard_normal(shape).astype(np.float32)
                    for shape in ((140, 4, 16), (260, 2, 16), (260, 2, 24), (140, 4, 24)))  # fmt: skip
    dlse = rng.standard_normal((140, 4)).astype(np.float32)

    def both(function, *tensors, upstream):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        return [*outputs, *tape.gradient(outputs, tensors, output_gradients=upstream)]

    tensors = [tf.constant(x) for x in (q, k, v)]
    together = both(
        lambda q, k, v: custom_ops.flash_attention_varlen(q, k, v, *BORDERS, return_lse=True, **settings),
        *tensors,
        upstream=[d_o, dlse],
    )
    for begin, end, first, last in zip(BORDERS[0], BORDERS[0][1:], BORDERS[1], BORDERS[1][1:], strict=False):
        rows, keys = slice(begin, end), slice(first, last)
        alone = both(
            lambda q, k, v: custom_ops.flash_attention(q, k, v, return_lse=True, **settings),
            *(x[None] for x in (tensors[0][rows], tensors[1][keys], tensors[2][keys])),
            upstream=[d_o[None, rows], dlse[None, rows]],
        )
        parts = [together[0][rows], together[1][rows], together[2][rows], together[3][keys], together[4][keys]]
        for part, one in zip(parts, alone, strict=True):
            np.testing.assert_allclose(part, one[0], rtol=1e-5, atol=2e-6)  # their sums are cut otherwise


X = np.zeros([2, 3, 4, 5], np.float32)
K = np.zeros([2, 6, 2, 5], np.float32)
ATTEND, VARLEN = custom_ops.flash_attention, custom_ops.flash_attention_varlen
THREE_HEADS = np.zeros([2, 6, 3, 5], np.float32)
WRONG = {
    "q has 4 heads, which must be a multiple of the 3 of k and v": lambda: ATTEND(X, THREE_HEADS, THREE_HEADS),
    "dimension depth must be 5": lambda: ATTEND(X, K[..., :4], K),
    "dimension keys must be 6": lambda: ATTEND(X, K, K[:, :5]),
    "dimension 1 of bias is 3, but must be 1 or 4": lambda: ATTEND(X, K, K, bias=np.zeros([2, 3, 1, 6], np.float32)),
    r"lengths\[1\] is 7, but must be from 0 to the 6 keys": lambda: ATTEND(X, K, K, lengths=[6, 7]),
    r"lengths\[0\] is -1": lambda: ATTEND(X, K, K, lengths=[-1, 6]),
    "window must be at least 1": lambda: ATTEND(X, K, K, window=0),
    "softcap must be a positive number": lambda: ATTEND(X, K, K, softcap=-1.0),
    "scale must be a finite number": lambda: ATTEND(X, K, K, scale=float("nan")),
    "cu_seqlens_q must begin with 0 and end with the 3 rows": lambda: VARLEN(X[0], K[0], K[0], [1, 3], [0, 6]),
    "cu_seqlens_k must begin with 0 and end with the 6 rows": lambda: VARLEN(X[0], K[0], K[0], [0, 3], [0, 7]),
    "cu_seqlens_q falls at 2": lambda: VARLEN(X[0], K[0], K[0], [0, 3, 2, 3], [0, 1, 2, 6]),
}


@pytest.mark.parametrize("argument", ["scale", "window", "softcap"])
def test_numbers_must_be_numbers(argument):
    for value in ("a", True, [1.0]):
        with pytest.raises(TypeError, match=f"{argument} must be a number, got"):
            ATTEND(X, X, X, **{argument: value})


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_of_any_size(causal):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 1, 4)).astype(np.float32)
    for window in (5, 2**31, 2**63 - 1):
        np.testing.assert_array_equal(ATTEND(x, x, x, window=window, causal=causal), ATTEND(x, x, x, causal=causal))


@pytest.mark.parametrize("message", WRONG)
def test_bad_input_is_named(message):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        WRONG[message]()


def test_an_unknown_depth_needs_a_scale():
    spec = tf.TensorSpec([1, None, 2, None])
    with pytest.raises(ValueError, match="scale: the depth of q is not known here"):
        tf.function(lambda x: custom_ops.flash_attention(x, x, x)).get_concrete_function(spec)
    traced = tf.function(lambda x: custom_ops.flash_attention(x, x, x, scale=0.5)).get_concrete_function(spec)
    assert traced.output_shapes.as_list() == [1, None, 2, None]


def test_second_derivatives():
    one = case(1, 6, 7, 2, 1, 4, 4, causal=True)
    inputs, _ = given(one)

    def curvature(function):
        tensors = [tf.constant(x) for x in inputs]
        with tf.GradientTape() as outer:
            outer.watch(tensors)
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                loss = tf.reduce_sum(function(*tensors)[0] ** 2)
            size = tf.add_n([tf.reduce_sum(x**2) for x in tape.gradient(loss, tensors)])
        return outer.gradient(size, tensors)

    for found, expected in zip(curvature(fused(one)), curvature(plain(one)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_in_jax():
    jax = pytest.importorskip("jax")
    one = CASES[3]
    inputs, _ = given(one)
    found = jax.jit(lambda q, k, v: custom_ops.flash_attention(q, k, v, causal=True))(*inputs)
    np.testing.assert_array_equal(found, custom_ops.flash_attention(*inputs, causal=True))


# Peak memory beyond the tensors; the same values with the instructions that the environment allows.
SCRIPT = """
import resource, sys, numpy as np, tensorflow as tf
from tftoolkit import custom_ops
rng = np.random.default_rng(0)
length, causal = int(sys.argv[1]), True
q, k, v = (tf.constant(rng.standard_normal((1, length, 4, 64)).astype(np.float32)) for _ in range(3))
def both(q, k, v):
    with tf.GradientTape() as tape:
        tape.watch([q, k, v])
        o = custom_ops.flash_attention(q, k, v, causal=causal)
    return [o, *tape.gradient(o, [q, k, v])]
both(*(x[:, :64] for x in (q, k, v)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = both(q, k, v)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
if len(sys.argv) > 2: np.savez(sys.argv[2], *found)
"""


@pytest.mark.slow
def test_memory_grows_with_the_length_only():
    """At 8192 queries the scores of four heads would take 1 GB; in and out are 2 MB a head each."""
    printed = subprocess.run([sys.executable, "-c", SCRIPT, "8192"], check=True, capture_output=True, text=True)
    assert int(printed.stdout) * 1024 < 0.05 * 4 * 8192**2 * 4


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_up_to_rounding(tmp_path):
    for isa in ("baseline", "avx2", "avx512"):  # the last: the best that this processor has
        environment = os.environ | {"TFTOOLKIT_ISA": isa}
        command = [sys.executable, "-c", SCRIPT, "300", tmp_path / f"{isa}.npz"]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    first, *others = (np.load(tmp_path / f"{isa}.npz") for isa in ("baseline", "avx2", "avx512"))
    for other in others:
        for name in first:
            np.testing.assert_allclose(other[name], first[name], rtol=1e-4, atol=2e-6)
