"""Keys and values of tokens that were seen, as plain tensors: what a decoder needs to go on where it was.

A cache is a dict, ``{"keys_0": …, "values_0": …, "keys_1": …}``, a pair for each layer, [batch, capacity, kv_heads,
head_size]. Row p belongs to the token at position p. Nothing is changed in place: a call gets one and returns the next,
so that it can be the state of a ``tf.while_loop`` or an input and output of a signature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tftoolkit import custom_ops

Cache = dict[str, tf.Tensor]


def empty(layers: int, shape: list[Any], dtype: Any) -> Cache:
    """Of zeros; shape is [batch, capacity, kv_heads, head_size]."""
    return {f"{what}_{layer}": tf.zeros(shape, dtype) for layer in range(layers) for what in ("keys", "values")}


class Extension:
    """A cache while a call puts further tokens into it.

    Tokens of sequence b stand at positions start[b], start[b] + 1, … Each sees the rows of the cache up to its own.
    What rows behind that hold does not matter: so sequences of several lengths, padded at their right ends, may be
    put in together, and each goes on at its own length, over the rows of its padding.

    Args:
      cache: before the call.
      start: int32, one number for all sequences, or [batch].
      tokens: of the call, [batch, length].

    Attributes:
      cache: the next one, once all layers have attended.
      positions: int32 [batch, length], of the tokens.
      capacity: how many rows there are.
    """

    def __init__(self, cache: Mapping[str, tf.Tensor], start: Any, tokens: tf.Tensor, ops: Any = custom_ops) -> None:
        self.cache = dict(cache)
        self.capacity = self.cache["keys_0"].shape[1]
        self._ops = ops
        batch, length = tf.unstack(tf.shape(tokens))
        self._length = tokens.shape[1]
        self._start = tf.broadcast_to(tf.cast(start, tf.int32), [batch])
        self.positions = self._start[:, tf.newaxis] + tf.range(length)
        self._rows = tf.range(self.capacity)

    def attend(self, layer: int, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        """[batch, length, heads, head_size] each → the same: attention of q to all that the layer has seen."""
        keys = self.cache[f"keys_{layer}"] = self._written(self.cache[f"keys_{layer}"], k)
        values = self.cache[f"values_{layer}"] = self._written(self.cache[f"values_{layer}"], v)
        if self._length == 1:  # reads only the rows that are filled
            return self._ops.flash_attention(q, keys, values, lengths=self._start + 1)
        seen = self._rows <= self.positions[..., tf.newaxis]
        bias = tf.where(seen, tf.zeros([], q.dtype), tf.constant(-float("inf"), q.dtype))
        return self._ops.flash_attention(q, keys, values, bias=bias[:, tf.newaxis])

    def _written(self, rows: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """A choice for each row, not a scatter: that is made of builtin operations of LiteRT, and quick under XLA."""
        place = self._rows - self._start[:, tf.newaxis]
        length = tf.shape(new)[1]
        inside = (place >= 0) & (place < length)
        moved = tf.gather(new, tf.clip_by_value(place, 0, length - 1), batch_dims=1)
        return tf.where(inside[..., tf.newaxis, tf.newaxis], moved, rows)


@dataclasses.dataclass(frozen=True)
class CachedLayer:
    """What one layer sees of the cache."""

    extension: Extension
    layer: int

    @property
    def positions(self) -> tf.Tensor:
        return self.extension.positions

    @property
    def capacity(self) -> int:
        return self.extension.capacity

    def attend(self, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return self.extension.attend(self.layer, q, k, v)
