"""What transformers are made of, as small ``tf.Module``s on the compiled ops.

Ops are looked up when a module is made: a library that must be compiled is then, and not in the middle of a trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models.kv_cache import CachedLayer
from tftoolkit.models.rotary import Rotary

Rng = np.random.Generator | int


def normal(rng: Rng, shape: list[int], deviation: float, dtype: Any) -> tf.Variable:
    """A variable of normally distributed numbers, the same for every dtype but for rounding."""
    values = np.random.default_rng(rng).standard_normal(shape, np.float32)
    return tf.Variable(tf.cast(deviation * values, dtype))


class Dense(tf.Module):
    """x @ kernel + bias.

    Args:
      inputs, outputs: sizes of the last dimension.
      bias: whether there is one; at first 0.
      deviation: of the first weights; 1 / sqrt(inputs) by default.
      dtype: of the weights; inputs must have it.
      rng: a seed, or what draws the first weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        deviation: float | None = None,
        dtype: Any = tf.float32,
        rng: Rng = 0,
    ) -> None:
        super().__init__()
        self.kernel = normal(rng, [inputs, outputs], inputs**-0.5 if deviation is None else deviation, dtype)
        self.bias = tf.Variable(tf.zeros([outputs], dtype)) if bias else None

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """[…, inputs] → […, outputs]."""
        y = product(x, self.kernel)
        return y if self.bias is None else y + self.bias


def product(x: tf.Tensor, matrix: Any, **options: bool) -> tf.Tensor:
    """x [..., rows] as one matrix: TensorFlow's batched products of a matrix are slower."""
    rows = tf.reshape(x, [-1, x.shape[-1]])
    y = tf.matmul(rows, matrix, **options)
    return tf.reshape(y, tf.concat([tf.shape(x)[:-1], [y.shape[-1]]], axis=0))


def layer_keys(key: tf.Tensor | None, count: int) -> list[tf.Tensor | None]:
    """A key for each layer."""
    fold = tf.random.experimental.stateless_fold_in
    return [None if key is None else fold(key, number) for number in range(1, count + 1)]


def dropped(x: tf.Tensor, rate: float, key: tf.Tensor | None, ops: Any = custom_ops) -> tf.Tensor:
    """Dropout, where there is a key and a rate."""
    return ops.dropout_add(x, tf.zeros_like(x), key, rate=rate) if key is not None and rate else x


class Embedding(tf.Module):
    """Rows of a table by number: [count, width].

    Args:
      count, width: the table's shape.
      deviation: of the first weights.
      dtype: of the table, and so of what comes out.
      rng: a seed, or what draws the first weights.
    """

    def __init__(
        self, count: int, width: int, *, deviation: float = 0.02, dtype: Any = tf.float32, rng: Rng = 0
    ) -> None:
        super().__init__()
        self.table = normal(rng, [count, width], deviation, dtype)

    def __call__(self, numbers: Any) -> tf.Tensor:
        """int […] → […, width]."""
        return tf.gather(self.table, numbers)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """[…, width] → […, count]: the products with all rows, as a layer whose weights are tied to the table."""
        return product(x, self.table, transpose_b=True)


class LayerNorm(tf.Module):
    """``custom_ops.layer_norm`` with its weights. With a residual: what is normalised is the sum, which comes, too.

    Args:
      width: of the last dimension.
      epsilon: as of the op.
      dtype: of the weights and of inputs: float32, bfloat16 or float16.
      ops: where ``layer_norm`` comes from; plain functions of that name will do.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-5, dtype: Any = tf.float32, ops: Any = custom_ops) -> None:
        super().__init__()
        self.gamma, self.beta = tf.Variable(tf.ones([width], dtype)), tf.Variable(tf.zeros([width], dtype))
        self._epsilon, self._layer_norm = epsilon, ops.layer_norm

    def __call__(self, x: tf.Tensor, residual: tf.Tensor | None = None) -> Any:
        """[…, width] → the same; with a residual (normalised, x + residual)."""
        return self._layer_norm(x, self.gamma, self.beta, residual=residual, epsilon=self._epsilon)


class RmsNorm(tf.Module):
    """``custom_ops.rms_norm`` with its weights. With a residual: what is normalised is the sum, which comes, too.

    Args:
      width: of the last dimension.
      epsilon: as of the op.
      dtype: of the weights and of inputs: float32, bfloat16 or float16.
      ops: where ``rms_norm`` comes from; plain functions of that name will do.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-6, dtype: Any = tf.float32, ops: Any = custom_ops) -> None:
        super().__init__()
        self.gamma = tf.Variable(tf.ones([width], dtype))
        self._epsilon, self._rms_norm = epsilon, ops.rms_norm

    def __call__(self, x: tf.Tensor, residual: tf.Tensor | None = None) -> Any:
        """[…, width] → the same; with a residual (normalised, x + residual)."""
        return self._rms_norm(x, self.gamma, residual=residual, epsilon=self._epsilon)


class Attention(tf.Module):
    """Attention with its four products.

    Args:
      width: of inputs and outputs.
      heads: of queries.
      kv_heads: of keys and values, each shared by heads / kv_heads of queries; as many as heads by default.
      head_size: of queries, keys and values; width / heads by default.
      bias: of queries, keys and values; ``out_bias`` of the output, the same by default.
      causal: a token sees those before it and itself.
      rotary: turns queries and keys by their positions; None: positions come in another way.
      deviation, out_deviation: of the first weights; 1 / sqrt(inputs) by default.

    Raises ValueError where width is no multiple of heads, or heads none of kv_heads.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_size: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        causal: bool = False,
        rotary: Rotary | None = None,
        deviation: float | None = None,
        out_deviation: float | None = None,
        dtype: Any = tf.float32,
        rng: Rng = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if head_size is None and width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        if heads % kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads, got heads={heads}, kv_heads={kv_heads}")
        rng, size = np.random.default_rng(rng), head_size or width // heads
        self._size, self._causal, self._ops, self._flash_attention = size, causal, ops, ops.flash_attention
        self.kv_shape = (kv_heads, size)
        self.rotary = rotary
        options = {"bias": bias, "deviation": deviation, "dtype": dtype, "rng": rng}
        self.query = Dense(width, heads * size, **options)
        self.key, self.value = (Dense(width, kv_heads * size, **options) for _ in range(2))
        self.out = Dense(
            *(heads * size, width),
            **{**options, "bias": bias if out_bias is None else out_bias, "deviation": out_deviation or deviation},
        )

    def __call__(
        self,
        x: tf.Tensor,
        *,
        lengths: Any = None,
        positions: Any = None,
        borders: Any = None,
        cached: CachedLayer | None = None,
    ) -> tf.Tensor:
        """[batch, length, width] → the same.

        Args:
          lengths: int32[batch], how many tokens of each sequence count; those behind them are padding.
          positions: int32 [length] or [batch, length], for the rotary embedding; 0, 1, … by default.
          borders: int32[sequences + 1]: the batch's rows, one behind the other, hold sequences with these borders, of
            which none sees another.
          cached: keys and values of earlier tokens, to which those of x are added.
        """
        q, k, v = (self._split(dense(x)) for dense in (self.query, self.key, self.value))
        if self.rotary is not None:
            positions, capacity = (positions, None) if cached is None else (cached.positions, cached.capacity)
            q, k = (self.rotary(one, positions, capacity) for one in (q, k))
        if borders is not None:
            rows = [tf.reshape(one, [-1, *one.shape[2:]]) for one in (q, k, v)]
            o = self._ops.flash_attention_varlen(*rows, borders, borders, causal=self._causal)
        elif cached is None:
            o = self._flash_attention(q, k, v, causal=self._causal, lengths=lengths)
        else:
            o = cached.attend(q, k, v)
        shape = tf.shape(x)
        return self.out(tf.reshape(o, [shape[0], shape[1], self.out.kernel.shape[0]]))

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(x)
        return tf.reshape(x, [shape[0], shape[1], x.shape[2] // self._size, self._size])


class Mlp(tf.Module):
    """The feed-forward layer: to ``hidden`` and back to ``width``.

    Args:
      width, hidden: sizes.
      activation: "gelu", "gelu_tanh" (GPT-2's), "relu", or "swiglu", for which there are two products up.
      bias: of the products.
      deviation, out_deviation: of the first weights; 1 / sqrt(inputs) by default.

    Raises ValueError where there is no such activation.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str = "gelu",
        bias: bool = True,
        deviation: float | None = None,
        out_deviation: float | None = None,
        dtype: Any = tf.float32,
        rng: Rng = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        if activation != "swiglu" and activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of swiglu, {', '.join(_ACTIVATIONS)}, got {activation!r}")
        rng = np.random.default_rng(rng)
        self._activation = activation
        up = {"bias": bias, "deviation": deviation, "dtype": dtype, "rng": rng}
        self.gate = Dense(width, hidden, **up) if activation == "swiglu" else None
        self._swiglu: Any = None if self.gate is None else ops.swiglu
        self.up = Dense(width, hidden, **up)
        self.down = Dense(hidden, width, **{**up, "deviation": out_deviation or deviation})

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """[…, width] → the same."""
        if self.gate is not None:
            return self.down(self._swiglu(self.gate(x), self.up(x)))
        return self.down(_ACTIVATIONS[self._activation](self.up(x)))


_ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": tf.nn.gelu,
    "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
    "relu": tf.nn.relu,
}


class TransformerBlock(tf.Module):
    """Attention and a feed-forward layer, each beside a residual connection.

    Args:
      attention, mlp: the two.
      attention_norm, mlp_norm: a norm in front of each; without ``norm_first``, as in BERT, one behind each sum.
      norm_first: where the norms are.
      dropout: probability with which elements of what the two give are dropped, where the call has a key.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: Mlp,
        attention_norm: LayerNorm | RmsNorm,
        mlp_norm: LayerNorm | RmsNorm,
        *,
        norm_first: bool = True,
        dropout: float = 0.0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp
        self.attention_norm, self.mlp_norm = attention_norm, mlp_norm
        self._norm_first, self._dropout, self._ops = norm_first, dropout, ops

    def __call__(
        self,
        x: tf.Tensor,
        *,
        lengths: Any = None,
        positions: Any = None,
        borders: Any = None,
        cached: CachedLayer | None = None,
        key: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """[batch, length, width] → the same.

        Args:
          lengths, positions, borders, cached: as of ``Attention``.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        keys = [None, None]
        if key is not None and self._dropout:
            keys = [tf.random.experimental.stateless_fold_in(key, number) for number in range(2)]
        normed = self.attention_norm(x) if self._norm_first else x
        y = self.attention(normed, lengths=lengths, positions=positions, borders=borders, cached=cached)
        if not self._norm_first:
            x, _ = self._joined(self.attention_norm, y, x, keys[0])
            return self._joined(self.mlp_norm, self.mlp(x), x, keys[1])[0]
        normed, x = self._joined(self.mlp_norm, y, x, keys[0])
        y = self.mlp(normed)
        return x + y if keys[1] is None else self._ops.dropout_add(y, x, keys[1], rate=self._dropout)

    def _joined(self, norm: Any, y: tf.Tensor, x: tf.Tensor, key: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """The norm of the sum, and the sum."""
        if key is None:
            return norm(y, residual=x)
        total = self._ops.dropout_add(y, x, key, rate=self._dropout)
        return norm(total), total
