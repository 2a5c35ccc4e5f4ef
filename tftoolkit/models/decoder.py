"""A small language model of today's kind, a decoder of transformer blocks, made of the compiled ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops


class Block(tf.Module):
    """Attention and a gated feed-forward layer, each behind a norm and beside a residual connection (Llama's block)."""

    def __init__(
        self, rng: np.random.Generator, width: int, heads: int, kv_heads: int, hidden: int, dtype: Any, ops: Any
    ) -> None:
        super().__init__()
        depth = width // heads
        self._ops, self._heads, self._kv_heads, self._depth = ops, heads, kv_heads, depth
        self.attention_norm, self.norm = (tf.Variable(tf.ones([width], dtype)) for _ in range(2))
        self.qkv = _matrix(rng, width, (heads + 2 * kv_heads) * depth, dtype)
        self.out = _matrix(rng, heads * depth, width, dtype)
        self.gate, self.up = _matrix(rng, width, hidden, dtype), _matrix(rng, width, hidden, dtype)
        self.down = _matrix(rng, hidden, width, dtype)

    def __call__(self, x: tf.Tensor, added: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """x and what the block before wants added to it → the sum with attention, and what is to be added to that."""
        ops = self._ops
        if added is None:
            normed = ops.rms_norm(x, self.attention_norm)
        else:
            normed, x = ops.rms_norm(added, self.attention_norm, residual=x)
        normed, x = ops.rms_norm(self._attend(normed), self.norm, residual=x)
        return x, _product(ops.swiglu(_product(normed, self.gate), _product(normed, self.up)), self.down)

    def _attend(self, x: tf.Tensor) -> tf.Tensor:
        ops, shape = self._ops, tf.shape(x)
        projected = tf.reshape(_product(x, self.qkv), [shape[0], shape[1], -1, self._depth])
        q, k, v = tf.split(projected, [self._heads, self._kv_heads, self._kv_heads], axis=2)
        o = ops.flash_attention(ops.rotary_embedding(q), ops.rotary_embedding(k), v, causal=True)
        return _product(tf.reshape(o, [shape[0], shape[1], self._heads * self._depth]), self.out)


class Decoder(tf.Module):
    """Predicts each next token from those before it.

    Args:
      vocabulary: how many tokens there are.
      width, layers, heads: of the model; width is a multiple of heads, and width / heads even.
      kv_heads: heads of keys and values, each shared by heads / kv_heads of queries; as many as heads by default.
      hidden: width of the feed-forward layers; 3 * width by default.
      dtype: of weights and activations: float32, bfloat16 or float16.
      seed: of the first weights, which are the same for every dtype but for rounding.
      ops: where ``rms_norm``, ``rotary_embedding``, ``flash_attention``, ``swiglu`` and ``fused_linear_cross_entropy``
        come from: ``custom_ops``, or something that has others under these names, to compare them.

    Raises:
      ValueError: width is no multiple of heads, or heads none of kv_heads.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int | None = None,
        hidden: int | None = None,
        dtype: Any = tf.float32,
        seed: int = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if width % (2 * heads):
            raise ValueError(f"width must be a multiple of twice the heads, got width={width}, heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got heads={heads}, kv_heads={kv_heads}")
        rng = np.random.default_rng(seed)
        self._ops = ops
        self.embedding = tf.Variable(tf.cast(0.02 * rng.standard_normal([vocabulary, width]), dtype))
        sizes = (width, heads, kv_heads, 3 * width if hidden is None else hidden)
        self.blocks = [Block(rng, *sizes, dtype, ops) for _ in range(layers)]
        self.norm = tf.Variable(tf.ones([width], dtype))
        self.head = _matrix(rng, width, vocabulary, dtype, transposed=True)

    def hidden(self, tokens: tf.Tensor) -> tf.Tensor:
        """int [batch, length] → [batch, length, width], of which the head makes logits."""
        x, added = tf.gather(self.embedding, tokens), None
        for block in self.blocks:
            x, added = block(x, added)
        if added is None:
            return self._ops.rms_norm(x, self.norm)
        return self._ops.rms_norm(added, self.norm, residual=x)[0]

    def __call__(self, tokens: tf.Tensor) -> tf.Tensor:
        """int [batch, length] → logits [batch, length, vocabulary]."""
        return _product(self.hidden(tokens), self.head, transpose_b=True)

    def loss(self, tokens: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The mean cross-entropy of labels, int [batch, length]; -100 does not count."""
        return self._ops.fused_linear_cross_entropy(labels, self.hidden(tokens), self.head)


def _matrix(rng: np.random.Generator, rows: int, columns: int, dtype: Any, *, transposed: bool = False) -> tf.Variable:
    shape = [columns, rows] if transposed else [rows, columns]
    return tf.Variable(tf.cast(rng.standard_normal(shape) / np.sqrt(rows), dtype))


def _product(x: tf.Tensor, matrix: tf.Variable, **options: bool) -> tf.Tensor:
    """x [..., rows] as one matrix: TensorFlow's batched products of a matrix are slower."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    product = tf.matmul(rows, matrix, **options)
    return tf.reshape(product, tf.concat([tf.shape(x)[:-1], tf.shape(product)[-1:]], axis=0))
