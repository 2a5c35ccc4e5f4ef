"""What benchmarks/gpu.py compares: for each op with a CUDA kernel the formula, inputs, and what PyTorch has for it.

Another op is one more entry of ``OPS``. Needs no TensorFlow; no program of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tftoolkit import custom_ops
from tftoolkit.custom_ops.dropout_add.cases import CASES as DROPOUT_CASES
from tftoolkit.custom_ops.fused_linear_cross_entropy.cases import CASES as LINEAR_CASES
from tftoolkit.custom_ops.layer_norm.cases import CASES as LAYER_CASES
from tftoolkit.custom_ops.rms_norm.cases import CASES as RMS_CASES
from tftoolkit.custom_ops.rotary_embedding.cases import CASES as ROTARY_CASES
from tftoolkit.custom_ops.rotary_embedding.cases import Case as RotaryCase
from tftoolkit.custom_ops.softmax_cross_entropy.cases import CASES as CLASS_CASES
from tftoolkit.custom_ops.swiglu.cases import CASES as GATE_CASES

Function = Callable[..., Any]  # arrays → an array or several
KEY, RATE = (1, 2), 0.1
# A row of one number has the gradient 0: what is left of it is rounding, times 316.
LAYERS = [case for case in LAYER_CASES if case.shape[-1] > 1]


class Entry(NamedTuple):
    """An op.

    Attributes:
      ours: the op, of JAX arrays.
      plain: (NumPy or jax.numpy, arrays) → the same by its formula, in the dtype of the arrays, which are wide.
      arguments: (shape of the first input, dtype) → NumPy arrays. Integers are not differentiated.
      cases: shapes and dtypes in which both must agree.
      speed: shapes to be timed.
      moved: how many times the bytes of the first input must be moved, forward and backward together.
      torch: (torch, tensors) → PyTorch's own; None where it has none.
      budget: how many times the error of the formula in float32, rounded to the dtype, it may have.
    """

    ours: Function
    plain: Function
    arguments: Callable[[Sequence[int], str], list[np.ndarray]]
    cases: Sequence[Any]
    speed: Sequence[tuple[int, ...]]
    moved: float
    torch: Function | None = None
    budget: float = 2.0


ROWS = ((4096, 1024), (8192, 4096), (512, 16_384))
HEADS = ((4, 2048, 16, 64), (2, 4096, 32, 128))
# Of a depth of 300 logits are so large that it is luck which of two sums in float32 errs more.
SMALL_LINEAR = [case for case in LINEAR_CASES if case.depth < 100]
# Tokens and depth; eight times as many classes. Bound by arithmetic, so that little of the copy rate is right.
LINEAR = ((4096, 4096), (2048, 2048))
VOCABULARIES = ((4096, 32_768), (2048, 50_257), (512, 256_000))


def normal(seed: int, shape: Sequence[int], dtype: str) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def matrices(count: int, vectors: int = 0) -> Callable[[Sequence[int], str], list[np.ndarray]]:
    """Inputs of that shape, then vectors as long as its last dimension."""

    def arguments(shape: Sequence[int], dtype: str) -> list[np.ndarray]:
        shapes = [tuple(shape)] * count + [tuple(shape[-1:])] * vectors
        return [normal(seed, one, dtype) for seed, one in enumerate(shapes)]

    return arguments


def added(vectors: int) -> Callable[[Sequence[int], str], list[np.ndarray]]:
    """Two matrices whose sum no dtype has to round, as the ops do before they normalise it; then vectors."""

    def arguments(shape: Sequence[int], dtype: str) -> list[np.ndarray]:
        x, *others = matrices(1, vectors)(shape, dtype)
        return [x, (-2 * x).astype(dtype), *others]

    return arguments


def classified(shape: Sequence[int], dtype: str) -> list[np.ndarray]:
    rows = shape[:-1]
    labels = np.random.default_rng(1).integers(0, shape[-1], rows)
    return [
        normal(0, shape, dtype),
        np.where(np.arange(labels.size).reshape(rows) % 5 == 4, -100, labels).astype(np.int32),
    ]


def last_layer(shape: Sequence[int], dtype: str) -> list[np.ndarray]:
    classes = 8 * shape[-1]
    labels = classified((*shape[:-1], classes), dtype)[1]
    return [normal(0, shape, dtype), normal(1, (classes, shape[-1]), dtype), labels]


# The formulas


def layer_norm(xp: Any, x: Any, gamma: Any, beta: Any) -> Any:
    mean = xp.mean(x, -1, keepdims=True)
    return (x - mean) / xp.sqrt(xp.mean((x - mean) ** 2, -1, keepdims=True) + 1e-5) * gamma + beta


def rms_norm(xp: Any, x: Any, gamma: Any) -> Any:
    return x / xp.sqrt(xp.mean(x * x, -1, keepdims=True) + 1e-6) * gamma


def attention(xp: Any, q: Any, k: Any, v: Any) -> Any:
    """Causal, over all of [batch, length, heads, depth]."""
    scores = xp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = xp.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, xp.asarray(-1e9, scores.dtype))
    weights = xp.exp(scores - xp.max(scores, -1, keepdims=True))
    return xp.einsum("bhqk,bkhd->bqhd", weights / xp.sum(weights, -1, keepdims=True), v)


def rotary_embedding(xp: Any, x: Any) -> Any:
    length, pairs = x.shape[1], x.shape[3] // 2
    angles = np.arange(length)[:, None, None] * 10000.0 ** (-np.arange(pairs) / pairs)
    cosines, sines = (xp.asarray(f(angles).astype(x.dtype)) for f in (np.cos, np.sin))
    a, b = x[..., :pairs], x[..., pairs:]
    return xp.concatenate([a * cosines - b * sines, b * cosines + a * sines], -1)


def swiglu(xp: Any, gate: Any, up: Any) -> Any:
    return gate / (1 + xp.exp(-gate)) * up


def geglu(xp: Any, gate: Any, up: Any) -> Any:
    """By tanh: NumPy has no erf."""
    return gate * (1 + xp.tanh(np.sqrt(2 / np.pi).astype(gate.dtype) * (gate + 0.044715 * gate**3))) / 2 * up


def softmax_cross_entropy(xp: Any, logits: Any, labels: Any) -> Any:
    largest = xp.max(logits, -1, keepdims=True)
    lse = xp.log(xp.sum(xp.exp(logits - largest), -1)) + largest[..., 0]
    label = xp.take_along_axis(logits, xp.maximum(labels, 0)[..., None], -1)[..., 0]
    return xp.where(labels == -100, xp.zeros_like(lse), lse - label)


def fused_linear_cross_entropy(xp: Any, x: Any, weight: Any, labels: Any) -> Any:
    return softmax_cross_entropy(xp, x @ weight.T, labels)


def philox(count: int) -> np.ndarray:
    """``count`` words of Philox4x32-10 with KEY as its key: four of each counter 0, 1, …"""
    number = np.arange((count + 3) // 4, dtype=np.uint64)
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b, c, d = number & mask, number >> shift, np.zeros_like(number), np.zeros_like(number)
    for r in range(10):
        keys = [
            np.uint64((key + r * step) & 0xFFFFFFFF) for key, step in zip(KEY, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (second >> shift) ^ b ^ keys[0], second & mask, (first >> shift) ^ d ^ keys[1], first & mask
    return np.stack([a, b, c, d], -1).reshape(-1)[:count]


def dropout_add(xp: Any, x: Any, residual: Any) -> Any:
    """With a mask that is a constant of the program: XLA's time is without making it."""
    kept = (philox(x.size) >= round(RATE * 2**32)).reshape(x.shape)
    return residual + xp.where(kept, x / (1 - RATE), xp.zeros_like(x))


# PyTorch's own


def torch_norm(name: str, residual: bool = False) -> Function:
    def run(torch: Any, x: Any, *others: Any) -> Any:
        function = getattr(torch.nn.functional, name)
        if not residual:
            return function(x, x.shape[-1:], *others)
        total = x + others[0]
        return function(total, x.shape[-1:], *others[1:]), total

    return run


def torch_cross_entropy(torch: Any, logits: Any, labels: Any) -> Any:
    return torch.nn.functional.cross_entropy(logits.float(), labels.long(), reduction="none")


def torch_attention(torch: Any, q: Any, k: Any, v: Any) -> Any:
    heads_first = (one.transpose(1, 2) for one in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2)


def torch_linear_cross_entropy(torch: Any, x: Any, weight: Any, labels: Any) -> Any:
    logits = torch.nn.functional.linear(x, weight).flatten(0, -2)
    return torch_cross_entropy(torch, logits, labels.flatten()).reshape(labels.shape)


def with_sum(function: Function) -> Function:
    """Of x + residual, which is returned, too."""
    return lambda xp, x, residual, *others: (function(xp, x + residual, *others), x + residual)


ATTENTION_CASES = [
    RotaryCase(shape, dtype)
    for shape in ((2, 5, 2, 3), (1, 64, 1, 64), (2, 130, 3, 40), (1, 300, 2, 128))
    for dtype in ("float32", "bfloat16", "float16")
]
OPS: Mapping[str, Entry] = {
    # Bound by arithmetic: the rate of a copy says nothing here. Gradients are made with the output as it was rounded,
    # and with weights of 16 bits, as in all attention of this kind.
    "flash_attention": Entry(
        lambda q, k, v: custom_ops.flash_attention(q, k, v, causal=True),
        attention, matrices(3), ATTENTION_CASES, ((16, 1024, 16, 64), (8, 2048, 16, 128)), 4 + 8, torch_attention, 8.0,
    ),
    "rms_norm": Entry(
        custom_ops.rms_norm, rms_norm, matrices(1, 1), RMS_CASES, ROWS, 2 + 3, torch_norm("rms_norm")
    ),
    "add_rms_norm": Entry(
        lambda x, residual, gamma: custom_ops.rms_norm(x, gamma, residual=residual),
        with_sum(rms_norm), added(1), RMS_CASES, ROWS, 4 + 4, torch_norm("rms_norm", residual=True),
    ),
    "layer_norm": Entry(
        custom_ops.layer_norm, layer_norm, matrices(1, 2), LAYERS, ROWS, 2 + 3, torch_norm("layer_norm")
    ),
    "add_layer_norm": Entry(
        lambda x, residual, gamma, beta: custom_ops.layer_norm(x, gamma, beta, residual=residual),
        with_sum(layer_norm), added(2), LAYERS, ROWS, 4 + 4, torch_norm("layer_norm", residual=True),
    ),
    "rotary_embedding": Entry(
        custom_ops.rotary_embedding, rotary_embedding, matrices(1), ROTARY_CASES, HEADS, 2 + 2
    ),
    "swiglu": Entry(
        custom_ops.swiglu, swiglu, matrices(2), GATE_CASES, ROWS, 3 + 5,
        lambda torch, gate, up: torch.nn.functional.silu(gate) * up,
    ),
    "geglu": Entry(
        lambda gate, up: custom_ops.geglu(gate, up, approximate=True), geglu, matrices(2), GATE_CASES, ROWS, 3 + 5,
        lambda torch, gate, up: torch.nn.functional.gelu(gate, approximate="tanh") * up,
    ),
    "softmax_cross_entropy": Entry(
        lambda logits, labels: custom_ops.softmax_cross_entropy(labels, logits),
        softmax_cross_entropy, classified, CLASS_CASES, VOCABULARIES, 1 + 2, torch_cross_entropy,
    ),
    "fused_linear_cross_entropy": Entry(
        lambda x, weight, labels: custom_ops.fused_linear_cross_entropy(labels, x, weight, reduction="none"),
        fused_linear_cross_entropy, last_layer, SMALL_LINEAR, LINEAR, 3 * (1 + 8), torch_linear_cross_entropy,
    ),
    "dropout_add": Entry(
        lambda x, residual: custom_ops.dropout_add(x, residual, np.array(KEY, np.int32), rate=RATE),
        dropout_add, matrices(2), DROPOUT_CASES, ROWS, 3 + 2,
        lambda torch, x, residual: residual + torch.nn.functional.dropout(x, RATE),
    ),
}  # fmt: skip
