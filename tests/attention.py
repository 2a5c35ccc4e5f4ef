"""Attention in NumPy and float64, and how close to it flash_attention must be."""

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import library
from tftoolkit.custom_ops.flash_attention.cases import Case

FORWARD = library.load_builtin("flash_attention").op("FlashAttention")
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
    """At most 3 times the largest error of the plain computation and 1.5 times its rms error (of a few numbers that is
    chance), beside one rounding when the result is stored, and some of the largest number in float32."""
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
        if error.size < 16:
            continue
        assert np.sqrt(np.mean(error**2)) <= 1.5 * np.sqrt(np.mean(allowed**2)) + (2.0**-22 + stored / 8) * largest
