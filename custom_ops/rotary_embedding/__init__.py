"""Rotary position embedding (Su et al. 2021, https://arxiv.org/abs/2104.09864).

.. math:: (a, b) \\mapsto (a \\cos\\theta - b \\sin\\theta,\\; b \\cos\\theta + a \\sin\\theta), \\qquad
   \\theta = p \\cdot \\mathrm{base}^{-2i / \\mathrm{dim}}

for pair i of each head at position p. One op, ``TfToolkit>RotaryEmbedding``; its gradient is the same op with
``inverse``, which turns back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.custom_ops.engine import library

if TYPE_CHECKING:
    import tensorflow as tf

_op = library.load_builtin("rotary_embedding").op("RotaryEmbedding")


def rotary_embedding(
    x: Any,
    positions: Any = None,
    *,
    base: float = 10000.0,
    dim: int | None = None,
    interleaved: bool = False,
    start: int = 0,
    name: str | None = None,
) -> Any:
    """Turns pairs of numbers in each head of queries or keys by angles that grow with the position.

    Args:
      x: [batch, length, heads, depth]; float32, bfloat16 or float16.
      positions: [length] for all rows, [batch, length] or [1, length]; int32 or int64, in 32 bits. None for start,
        start + 1, …
      base: wavelengths go from 2 pi up to nearly 2 pi * base positions; positive.
      dim: how many numbers of each head are turned, even; the rest stay as they are. None for all.
      interleaved: pairs are (x[2i], x[2i + 1]), as in the paper; otherwise (x[i], x[i + dim/2]), as in most models.
      start: the first position, when tokens before it are in a cache.

    Returns:
      A tensor of x's shape and dtype. Differentiable to any order by x. Angles are computed in float64, so sines and
      cosines are right to float32 at any position below 2^20, and to 1e-6 at all.

    Raises:
      tf.errors.InvalidArgumentError: x is not of rank 4, dim (or the depth) is odd or larger than the depth, or
        positions fit neither x nor 32 bits.
      ValueError: base or dim is not positive, or both positions and start are given.
    """
    if not base > 0:
        raise ValueError(f"base must be positive, got {base}")
    if dim is not None and (dim <= 0 or dim % 2):
        raise ValueError(f"dim must be even and positive, or None for the whole depth, got {dim}")
    if positions is not None:
        if start:
            raise ValueError(f"start = {start} is for positions that are counted; add it to those given in positions")
        positions = positions if hasattr(positions, "shape") else np.asarray(positions)
        rank = getattr(positions.shape, "rank", None) if hasattr(positions.shape, "rank") else len(positions.shape)
        positions = positions[None] if rank == 1 else positions
    options = {"base": base, "dim": dim or 0, "interleaved": interleaved, "start": start}
    return _op(x, positions, **options, name=name)


@_op.reference
def _(
    x: tf.Tensor,
    positions: tf.Tensor | None,
    *,
    base: float,
    dim: int,
    interleaved: bool,
    start: int,
    inverse: bool,
) -> tf.Tensor:
    import tensorflow as tf

    length, depth = tf.shape(x)[1], tf.shape(x)[3]
    if positions is None:
        positions = tf.cast(tf.range(length), tf.int64)[tf.newaxis] + start
    pairs = (dim or depth) // 2
    exponents = tf.cast(tf.range(pairs), tf.float64) / tf.cast(pairs, tf.float64)
    angles = tf.cast(positions, tf.float64)[..., tf.newaxis] * tf.pow(tf.constant(base, tf.float64), -exponents)
    # For all heads: [rows, length, 1, pairs].
    cosines, sines = (tf.cast(f(angles), tf.float32)[:, :, tf.newaxis] for f in (tf.cos, tf.sin))
    sines = -sines if inverse else sines
    wide = tf.cast(x, tf.float32)
    if interleaved:
        a, b = wide[..., 0 : 2 * pairs : 2], wide[..., 1 : 2 * pairs : 2]
    else:
        a, b = wide[..., :pairs], wide[..., pairs : 2 * pairs]
    turned = [a * cosines - b * sines, b * cosines + a * sines]
    if interleaved:
        joined = tf.reshape(tf.stack(turned, axis=-1), tf.concat([tf.shape(x)[:3], [2 * pairs]], 0))
    else:
        joined = tf.concat(turned, axis=-1)
    return tf.cast(tf.concat([joined, wide[..., 2 * pairs :]], axis=-1), x.dtype)


@_op.gradient
def _(op: Any, dy: Any) -> tuple[Any, None]:
    positions = op.inputs[1] if op.get_attr("has_positions") else None
    options = {name: op.get_attr(name) for name in ("dim", "interleaved", "start")}
    dx = _op(dy, positions, base=float(op.get_attr("base")), inverse=not op.get_attr("inverse"), **options)
    return dx, None
