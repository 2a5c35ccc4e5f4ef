"""flash_attention against float64, at about the error of the plain computation; masks, borders, bad input."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import ops
from tftoolkit.custom_ops.flash_attention.cases import CASES, DTYPES, EMPTY_CASES, Case, case

assert custom_ops.flash_attention  # loads the library
FORWARD = ops.find("TfToolkit>FlashAttention")
MODES = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}


def given(case: Case, magnitude: float = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """q, k, v and perhaps a bias, and the gradients of output and log-sum-exp; float32 that the case's dtype holds."""
    c, rng = case, np.random.default_rng(0)

    def draw(*shape):
        return tf.cast(tf.cast(rng.standard_normal(shape), c.dtype), tf.float32).numpy()

    q, k = draw(*c.shape) * np.float32(magnitude), draw(c.batch, c.keys, c.kv_heads, c.depth)
    v = draw(c.batch, c.keys, c.kv_heads, c.value_depth)
    bias = [draw(*c.bias, c.keys)] if c.bias else []
    d_o = draw(c.batch, c.queries, c.heads, c.value_depth)
    return [q, k, v, *bias], [d_o, rng.standard_normal(c.shape[:3]).astype(np.float32)]


def options(case: Case) -> dict:
    found = dict(case.options)
    if "lengths" in found:
        found["lengths"] = tf.constant(found["lengths"])
    return found


def seen(case: Case) -> np.ndarray:
    """bool[batch, queries, keys]; the last query stands at the last key."""
    o = dict(case.options)
    place = np.arange(case.queries)[:, None] + case.keys - case.queries
    key = np.arange(case.keys)
    found = np.ones([case.batch, case.queries, case.keys], bool)
    if o.get("causal"):
        found &= key <= place
    if "window" in o:
        found &= (key > place - o["window"]) & (key < place + o["window"])
    if "lengths" in o:
        found &= key < np.array(o["lengths"])[:, None, None]
    return found


def float64(case: Case, inputs, upstream) -> list[np.ndarray]:
    """o, log-sum-exp, and the gradients by all inputs: the formulas of the kernel's header comment, in NumPy."""
    q, k, v, *bias = (x.astype(np.float64) for x in inputs)
    d_o, dlse = (x.astype(np.float64) for x in upstream)
    group, scale, cap = case.heads // case.kv_heads, case.depth**-0.5, dict(case.options).get("softcap")
    k, v = (np.repeat(x, group, 2) for x in (k, v))
    s = scale * np.einsum("bqhd,bkhd->bhqk", q, k)
    slope = 1.0
    if cap:
        slope, s = 1 - np.tanh(s / cap) ** 2, cap * np.tanh(s / cap)
    s = np.where(seen(case)[:, None], s + (bias[0] if bias else 0), -np.inf)
    top = np.max(s, -1, keepdims=True, initial=-1e300)
    p = np.exp(s - top)
    total = p.sum(-1, keepdims=True)
    p = p / np.where(total == 0, 1, total)
    o = np.einsum("bhqk,bkhe->bqhe", p, v)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0].transpose(0, 2, 1)
    lse = np.where(total[..., 0].transpose(0, 2, 1) == 0, -np.inf, lse)
    dp = np.einsum("bqhe,bkhe->bhqk", d_o, v) + dlse.transpose(0, 2, 1)[..., None]
    ds = p * (dp - np.sum(p * (dp - dlse.transpose(0, 2, 1)[..., None]), -1, keepdims=True))
    dq, dk = scale * np.einsum("bhqk,bkhd->bqhd", ds * slope, k), scale * np.einsum("bhqk,bqhd->bkhd", ds * slope, q)
    dk, dv = (_summed(x, group) for x in (dk, np.einsum("bhqk,bqhe->bkhe", p, d_o)))
    axes = tuple(axis for axis in range(3) if case.bias and case.bias[axis] == 1)
    return [o, lse, dq, dk, dv, *([ds.sum(axes, keepdims=True)] if bias else [])]


def _summed(x: np.ndarray, group: int) -> np.ndarray:
    batch, keys, heads, depth = x.shape
    return x.reshape(batch, keys, heads // group, group, depth).sum(3)


def run(function, case: Case, inputs, upstream, mode="eager") -> list[np.ndarray]:
    def both(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            o, lse = function(*tensors)
        dlse = tf.where(tf.math.is_inf(lse), 0.0, upstream[1])
        gradients = tape.gradient([o, lse], tensors, output_gradients=[tf.cast(upstream[0], case.dtype), dlse])
        return [o, lse, *gradients]

    found = MODES[mode](both)(*(tf.cast(x, case.dtype) for x in inputs))
    assert found[0].dtype == case.dtype
    return [tf.cast(x, tf.float32).numpy() for x in found]


def fused(case: Case):
    return lambda q, k, v, bias=None: custom_ops.flash_attention(q, k, v, bias=bias, return_lse=True, **options(case))


def plain(case: Case):
    o = options(case)
    lengths = o.pop("lengths", None)
    settings = {"scale": case.depth**-0.5, "causal": False, "window": 0, "softcap": 0.0, **o}

    def reference(q, k, v, bias=None):
        found = FORWARD.run_reference(q, k, v, bias, lengths, has_lse=True, **settings)
        return found.o, found.lse

    return reference


def assert_as_good_as(actual, naive, exact, dtype):
    """At most 3 times the largest error of the plain computation and 1.5 times its rms error (those of a few numbers
    scatter more), beside one rounding when the result is stored, and some of the largest number in float32."""
    stored = {"float32": 0, "bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    for one, plain_one, right in zip(actual, naive, exact, strict=True):
        assert one.shape == right.shape
        if not right.size:
            continue
        np.testing.assert_array_equal(np.isinf(one), np.isinf(right))
        finite = np.isfinite(right)
        error, allowed = (np.abs(x[finite] - right[finite]) for x in (one, plain_one))
        if not error.size:
            continue
        largest = np.abs(right[finite]).max()
        assert error.max() <= 3 * allowed.max() + (2.0**-21 + stored) * largest
        assert np.sqrt(np.mean(error**2)) <= 1.5 * np.sqrt(np.mean(allowed**2)) + (2.0**-22 + stored / 8) * largest


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
