"""Attention that never holds its scores (Dao et al. 2022, https://arxiv.org/abs/2205.14135; Dao 2023, 2307.08691).

.. math:: o = \\mathrm{softmax}(\\mathrm{scale} \\cdot q k^T + \\mathrm{bias})\\, v

Ops ``TfToolkit>FlashAttention`` and ``TfToolkit>FlashAttentionVarlen``, and ``...Grad`` of both with kernels of their
own. They compute in float32 whatever they load and store, in tiles that fit the caches: memory grows with the length
and not with its square, forward and backward.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.engine import library, ops

if TYPE_CHECKING:
    import tensorflow as tf

_library = library.load_builtin("flash_attention")
_forward = _library.op("FlashAttention")
_backward = _library.op("FlashAttentionGrad")
_forward_varlen = _library.op("FlashAttentionVarlen")
_backward_varlen = _library.op("FlashAttentionVarlenGrad")


def flash_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    bias: Any = None,
    lengths: Any = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    name: str | None = None,
) -> Any:
    """Scaled dot product attention.

    The last query stands at the last key, also where there are fewer queries than keys: query i is at key
    ``i + keys - queries``. Queries that see no key get zeros. NaN in what a query sees makes its output
    NaN, and may do so to queries of that sequence that don't see it, as a masked zero times NaN does.

    Args:
      q: [batch, queries, heads, depth]; float32, bfloat16 or float16.
      k: [batch, keys, kv_heads, depth], of q's dtype; heads is a multiple of kv_heads, and query head h reads head
        ``h // (heads / kv_heads)`` of k and v (grouped queries, Ainslie et al. 2023).
      v: [batch, keys, kv_heads, value_depth].
      causal: a query sees no key behind its own place.
      scale: of the scores; default 1 / sqrt(depth).
      bias: added to the scaled scores: [batch or 1, heads or 1, queries or 1, keys], of q's dtype; -inf is a mask. It
        has a gradient, for which tasks that add to one element run one after the other.
      lengths: int32[batch], how many keys of each sequence there are; what stands behind them is not looked at.
      window: a query sees the last ``window`` keys up to its place, its own included; without ``causal`` also as many
        from there on.
      softcap: scores become ``softcap * tanh(scores / softcap)`` before the bias is added (Gemma 2, 2408.00118).
      return_lse: return the logarithm of the sum of the exponentials of each query's scores, too.

    Returns:
      [batch, queries, heads, value_depth] of q's dtype; with ``return_lse`` also float32[batch, queries, heads], -inf
      where nothing is seen. Differentiable to any order (the second by the plain computation, with all scores). The
      same bits for any number of threads.

    Raises:
      tf.errors.InvalidArgumentError: shapes that do not fit together, or a length below 0 or above the number of keys.
      ValueError: scale, window or softcap out of range, or an unknown depth without a scale.
      TypeError: scale, window or softcap is no number.
    """
    settings = _settings(q, causal, scale, window, softcap)
    found = _forward(q, k, v, bias, lengths, **settings, has_lse=bool(return_lse), name=name)
    return (found.o, found.lse) if return_lse else found.o


def flash_attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    name: str | None = None,
) -> Any:
    """``flash_attention`` of sequences of any lengths that lie one behind the other, without padding.

    Args:
      q: [rows, heads, depth], the rows of all sequences; float32, bfloat16 or float16.
      k: [key_rows, kv_heads, depth].
      v: [key_rows, kv_heads, value_depth].
      cu_seqlens_q: int32[sequences + 1]: where each sequence begins in q, and behind them the number of rows.
      cu_seqlens_k: the same of k and v.
      causal, scale, window, softcap, return_lse: as of ``flash_attention``, within each sequence.

    Returns:
      [rows, heads, value_depth]; with ``return_lse`` also float32[rows, heads].

    Raises:
      tf.errors.InvalidArgumentError: shapes that do not fit together, or borders that do not begin with 0, fall, or do
        not end with the number of rows.
      ValueError, TypeError: as of ``flash_attention``.
    """
    settings = _settings(q, causal, scale, window, softcap)
    found = _forward_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **settings, has_lse=bool(return_lse), name=name)
    return (found.o, found.lse) if return_lse else found.o


def _settings(q: Any, causal: bool, scale: float | None, window: int | None, softcap: float | None) -> dict[str, Any]:
    if scale is None:
        depth = _depth(q)
        if depth is None:
            raise ValueError("scale: the depth of q is not known here; give a scale, such as depth ** -0.5")
        scale = 1 / math.sqrt(max(1, depth))
    for argument, value in (("scale", scale), ("window", window), ("softcap", softcap)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
            raise TypeError(f"{argument} must be a number, got {value!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale}")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 (a query sees itself), or None, got {window}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be a positive number, or None, got {softcap}")
    return {"causal": bool(causal), "scale": float(scale), "window": window or 0, "softcap": float(softcap or 0)}


def _depth(q: Any) -> int | None:
    """The last dimension, as far as it is known; of tensors of TensorFlow, NumPy, JAX, and lists."""
    import numpy as np

    shape = q.shape if hasattr(q, "shape") else np.shape(q)
    rank = getattr(shape, "rank", None) if hasattr(shape, "rank") else len(shape)
    return shape[-1] if rank else None


_ATTRIBUTES = ("causal", "scale", "window", "softcap")


@_forward.reference
def _(q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, bias: Any, lengths: Any, *, has_lse: bool, **settings: Any) -> Any:
    from tftoolkit.custom_ops.flash_attention import plain

    o, score_max, inv_sum, lse = plain.attention(q, k, v, plain.seen(q, k, lengths, **settings), bias, **settings)
    return o, score_max, inv_sum, lse if has_lse else None


def _dlse(op: Any, gradients: Sequence[Any]) -> Any:
    """By the log-sum-exp, of those by all outputs: 1 / sum is a power of it. The largest score moves nothing, since all
    that is made of it is divided by it again."""
    d_inv_sum = gradients[2] * op.outputs[2]
    return gradients[3] - d_inv_sum if op.get_attr("has_lse") else -d_inv_sum


def _no_bias(k: Any) -> Any:
    """Of the rank that a bias has, and its last dimension."""
    if "jax" in sys.modules and ops.is_jax([k]):
        import jax.numpy as jnp

        return jnp.zeros([0, 0, 0, k.shape[1]], k.dtype)
    import tensorflow as tf

    return tf.zeros([0, 0, 0, tf.shape(k)[1]], k.dtype)


@_forward.gradient
def _(op: Any, *gradients: Any) -> Any:
    q, k, v, bias, lengths = op.inputs
    has_bias, has_lengths = op.get_attr("has_bias"), op.get_attr("has_lengths")
    found = _backward(
        *(q, k, v, bias if has_bias else _no_bias(k)),
        *(lengths if has_lengths else None, *op.outputs[:3], gradients[0], _dlse(op, gradients)),
        **{name: op.get_attr(name) for name in _ATTRIBUTES},
        biased=has_bias,
        has_dbias=has_bias,
    )
    return found.dq, found.dk, found.dv, found.dbias, None


@_backward.reference
def _(q, k, v, bias, lengths, o, score_max, inv_sum, d_o, dlse, *, biased, has_dbias, **settings) -> Any:  # type: ignore[no-untyped-def]
    from tftoolkit.custom_ops.flash_attention import plain

    found = plain.gradients(
        *(q, k, v, plain.seen(q, k, lengths, **settings), bias if biased else None),
        *(o, score_max, inv_sum, d_o, dlse),
        **settings,
    )
    return (*found[:3], found[3] if has_dbias else None)


@_forward_varlen.reference
def _(q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, *, has_lse: bool, **settings: Any) -> Any:
    from tftoolkit.custom_ops.flash_attention import plain

    of_q, of_k = plain.Padded(cu_seqlens_q), plain.Padded(cu_seqlens_k)
    padded = of_q.pad(q), of_k.pad(k), of_k.pad(v)
    seen = plain.seen_varlen(of_q, of_k, *padded[:2], settings["causal"], settings["window"])
    found = plain.attention(*padded, seen, None, **settings)
    o, score_max, inv_sum, lse = (of_q.unpad(one, q) for one in found)
    return o, score_max, inv_sum, lse if has_lse else None


@_forward_varlen.gradient
def _(op: Any, *gradients: Any) -> Any:
    found = _backward_varlen(
        *(*op.inputs, *op.outputs[:3], gradients[0], _dlse(op, gradients)),
        **{name: op.get_attr(name) for name in _ATTRIBUTES},
    )
    return *found, None, None


@_backward_varlen.reference
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, o, score_max, inv_sum, d_o, dlse, **settings) -> Any:  # type: ignore[no-untyped-def]
    from tftoolkit.custom_ops.flash_attention import plain

    of_q, of_k = plain.Padded(cu_seqlens_q), plain.Padded(cu_seqlens_k)
    padded = of_q.pad(q), of_k.pad(k), of_k.pad(v)
    seen = plain.seen_varlen(of_q, of_k, *padded[:2], settings["causal"], settings["window"])
    rows = (None if one is None else of_q.pad(one) for one in (o, score_max, inv_sum, d_o, dlse))
    dq, dk, dv, _ = plain.gradients(*padded, seen, None, *rows, **settings)
    return of_q.unpad(dq, q), of_k.unpad(dk, k), of_k.unpad(dv, v)


_backward.differentiate_reference()
_backward_varlen.differentiate_reference()
