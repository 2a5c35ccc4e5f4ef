"""A recurrent language model: embedding, cells one above the other, a layer that makes logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.models.blocks import Dense, Embedding, Rng, dropped, layer_keys, normal, product

State = dict[str, tf.Tensor]
_Step = Callable[[tf.Tensor, tf.Tensor, list[tf.Tensor]], list[tf.Tensor]]
_PARTS = ("output", "memory")
# Up to so many tokens are no loop: it would cost more than it does, and LiteRT.js 2.5.3 gets such loops wrong.
_WRITTEN_OUT = 16


def _simple(x: tf.Tensor, h: tf.Tensor, state: list[tf.Tensor]) -> list[tf.Tensor]:
    return [tf.tanh(x + h)]


def _lstm(x: tf.Tensor, h: tf.Tensor, state: list[tf.Tensor]) -> list[tf.Tensor]:
    let_in, keep, let_out, new = tf.split(x + h, 4, axis=-1)
    memory = tf.sigmoid(keep) * state[1] + tf.sigmoid(let_in) * tf.tanh(new)
    return [tf.sigmoid(let_out) * tf.tanh(memory), memory]


def _gru(x: tf.Tensor, h: tf.Tensor, state: list[tf.Tensor]) -> list[tf.Tensor]:
    x_keep, x_reset, x_new = tf.split(x, 3, axis=-1)
    h_keep, h_reset, h_new = tf.split(h, 3, axis=-1)
    new = tf.tanh(x_new + tf.sigmoid(x_reset + h_reset) * h_new)
    keep = tf.sigmoid(x_keep + h_keep)
    return [keep * state[0] + (1.0 - keep) * new]


# Name → the step from what inputs and last output add to the gates, how many gates, how many vectors of state.
_CELLS: dict[str, tuple[_Step, int, int]] = {"simple": (_simple, 1, 1), "gru": (_gru, 3, 1), "lstm": (_lstm, 4, 2)}


class RecurrentLayer(tf.Module):
    """A cell that goes along a sequence.

    Args:
      inputs, width: sizes of input and output.
      cell: see ``Recurrent``.
      rng: a seed, or what draws the first weights.

    Attributes:
      states: of how many vectors the state consists; the first one is the last output.
    """

    def __init__(self, inputs: int, width: int, cell: str, *, dtype: Any = tf.float32, rng: Rng = 0) -> None:
        super().__init__()
        self._step, gates, self.states = _CELLS[cell]
        rng = np.random.default_rng(rng)
        self.kernel = normal(rng, [inputs, gates * width], inputs**-0.5, dtype)
        self.recurrent = normal(rng, [width, gates * width], width**-0.5, dtype)
        bias = np.zeros([gates, width])
        if cell == "lstm":
            bias[1] = 1.0  # it keeps its memory until it learns to forget
        self.bias = tf.Variable(tf.cast(bias.reshape(-1), dtype))

    def __call__(self, x: tf.Tensor, state: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """[length, batch, inputs] and the state before → [length, batch, width] and the state behind."""
        projected = product(x, self.kernel) + self.bias  # one product for all of the sequence

        def step(t: Any, state: list[tf.Tensor]) -> list[tf.Tensor]:
            return self._step(projected[t], tf.matmul(state[0], self.recurrent), state)

        if x.shape[0] is not None and x.shape[0] <= _WRITTEN_OUT:
            found = []
            for t in range(x.shape[0]):
                state = step(t, state)
                found.append(state[0])
            return tf.stack(found), state
        length = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
        outputs = tf.TensorArray(x.dtype, length, element_shape=state[0].shape)

        def turn(t: tf.Tensor, state: list[tf.Tensor], outputs: tf.TensorArray) -> Any:
            state = step(t, state)
            return t + 1, state, outputs.write(t, state[0])

        start = (tf.constant(0), list(state), outputs)
        # XLA must know how many turns there are at most, to keep what the gradient needs of them.
        _, state, outputs = tf.while_loop(lambda t, *_: t < length, turn, start, maximum_iterations=length)
        return outputs.stack(), state


class Recurrent(tf.Module):
    """Predicts each next token from its state, which is all that it keeps of those before.

    It has the methods of the decoders that ``generate`` calls; its cache is its state, ``{"output_0": [batch, width],
    "memory_0": ...}``, whose size doesn't depend on how many tokens were seen.

    Cells, with x the input, h the last output, W, R and b weights, s the sigmoid: "simple" is tanh(xW + hR + b) (Elman
    1990); "lstm" that of Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000), whose bias is 1
    at first; "gru" that of Cho et al. (2014) with the reset gate behind the product, tanh(xW + b + s(reset)·hR).

    Args:
      vocabulary: how many tokens there are.
      width: of each layer's output.
      cell: "simple", "gru" or "lstm".
      layers: one above the other.
      embedding: width of the embedding.
      dropout: probability with which an element of a layer's output is dropped in training.
      dtype: of weights and activations.
      seed: of the first weights.

    Raises:
      ValueError: an unknown cell, or a size below 1.
    """

    context = None
    """Most tokens that it reads: it goes on for ever."""

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        cell: str = "lstm",
        layers: int = 1,
        embedding: int = 64,
        dropout: float = 0.0,
        dtype: Any = tf.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ValueError(f"cell must be one of {', '.join(_CELLS)}, got {cell!r}")
        for name, value in (("vocabulary", vocabulary), ("width", width), ("layers", layers), ("embedding", embedding)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        rng = np.random.default_rng(seed)
        self.vocabulary, self.width = vocabulary, width
        self._dropout, self._dtype = dropout, tf.as_dtype(dtype)
        self.embedding = Embedding(vocabulary, embedding, deviation=1.0, dtype=dtype, rng=rng)
        sizes = [embedding, *[width] * (layers - 1)]
        self.layers = [RecurrentLayer(size, width, cell, dtype=dtype, rng=rng) for size in sizes]
        self.head = Dense(width, vocabulary, dtype=dtype, rng=rng)

    def __call__(self, tokens: tf.Tensor) -> tf.Tensor:
        """int [batch, length] → logits [batch, length, vocabulary]."""
        return self.logits(self.decode(tokens, self.empty_cache(tf.shape(tokens)[0]))[0])

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., width] → [..., vocabulary]."""
        return self.head(hidden)

    def empty_cache(self, batch: Any, capacity: int | None = None) -> State:
        """The state before the first token: zeros. ``capacity`` is for decoders; here nothing runs out."""
        shape = [batch, self.width]
        return {
            f"{part}_{number}": tf.zeros(shape, self._dtype)
            for number, layer in enumerate(self.layers)
            for part in _PARTS[: layer.states]
        }

    def decode(
        self, tokens: tf.Tensor, cache: Mapping[str, tf.Tensor], start: Any = None, *, key: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, State]:
        """Outputs of the last layer for tokens that follow those of a state, and the state behind them.

        Args:
          tokens: int [batch, length].
          cache: from ``empty_cache``, or from the call before.
          start: int32, one for all or [batch], the position of the first token: where it is 0 nothing was before, and
            the state counts as zero. None: the state counts.
          key: int32[2], the seed of the dropout in training; None: no dropout.

        Returns:
          [batch, length, width], for ``logits``, and the next state.
        """
        if start is not None:
            goes_on = tf.reshape(tf.cast(start, tf.int32) > 0, [-1, 1])
            cache = {name: tf.where(goes_on, value, tf.zeros_like(value)) for name, value in cache.items()}
        after: State = {}
        x = self.embedding(tf.transpose(tokens))
        for number, (layer, one) in enumerate(zip(self.layers, layer_keys(key, len(self.layers)), strict=True)):
            names = [f"{part}_{number}" for part in _PARTS[: layer.states]]
            x, state = layer(x, [cache[name] for name in names])
            after |= dict(zip(names, state, strict=True))
            x = dropped(x, self._dropout, one)
        return tf.transpose(x, [1, 0, 2]), after
