"""What all decoders have in common: they predict each next token, at once or one after the other."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models import kv_cache
from tftoolkit.models.blocks import Embedding, LayerNorm, RmsNorm, TransformerBlock, layer_keys
from tftoolkit.models.presets import WithPresets


class DecoderModel(WithPresets):
    """Base of decoders: blocks between an embedding and a norm, and a head. Those below it say what these are.

    Attributes:
      vocabulary: how many tokens there are.
      context: how many positions there are; None where any number may follow.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    embedding: Embedding
    blocks: list[TransformerBlock]
    norm: LayerNorm | RmsNorm
    head: Embedding | None  # None: tied to the embedding

    def __init__(self, vocabulary: int, context: int | None, dropout: float, dtype: Any, ops: Any = custom_ops) -> None:
        super().__init__()
        self.vocabulary, self.context = vocabulary, context
        self._dropout, self._dtype, self._ops = dropout, tf.as_dtype(dtype), ops

    def __call__(self, tokens: tf.Tensor, *, positions: Any = None, key: tf.Tensor | None = None) -> tf.Tensor:
        """int [batch, length] → logits [batch, length, vocabulary]; arguments as of ``hidden``."""
        return self.logits(self.hidden(tokens, positions=positions, key=key))

    def hidden(
        self, tokens: tf.Tensor, *, positions: Any = None, borders: Any = None, key: tf.Tensor | None = None
    ) -> tf.Tensor:
        """int [batch, length] → [batch, length, width], of which ``logits`` makes logits.

        Args:
          positions: int32 [length] or [batch, length], where the tokens stand; 0, 1, … by default.
          borders: int32[sequences + 1]: the batch's rows, one behind the other, hold sequences with these borders, of
            which none sees another: documents packed into windows. Give their positions as well.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        x, keys = self._embedded(tokens, positions, key), layer_keys(key, len(self.blocks))
        for block, one in zip(self.blocks, keys, strict=True):
            x = block(x, positions=positions, borders=borders, key=one)
        return self.norm(x)

    def hidden_states(self, tokens: tf.Tensor) -> list[tf.Tensor]:
        """[batch, length, width] in front of the first block and behind each."""
        states = [self._embedded(tokens, None, None)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[…, width] → [..., vocabulary]."""
        return self._head.logits(hidden)

    def loss(self, tokens: tf.Tensor, labels: tf.Tensor, **options: Any) -> tf.Tensor:
        """The mean cross-entropy of labels, int [batch, length]; -100 does not count. Logits never exist as a whole.

        Options are the other arguments of ``hidden``.
        """
        return self._ops.fused_linear_cross_entropy(labels, self.hidden(tokens, **options), self._head.table)

    def empty_cache(self, batch: Any, capacity: int) -> kv_cache.Cache:
        """For ``decode``, with room for so many positions of so many sequences."""
        heads, size = self.blocks[0].attention.kv_shape
        return kv_cache.empty(len(self.blocks), [batch, capacity, heads, size], self._dtype)

    def decode(self, tokens: tf.Tensor, cache: kv_cache.Cache, start: Any) -> tuple[tf.Tensor, kv_cache.Cache]:
        """Hidden states of tokens that follow those in a cache: of a prompt, or of one token.

        Args:
          tokens: int [batch, length].
          cache: from ``empty_cache``, or from the call before.
          start: int32, the position of each sequence's first token, one for all or [batch]. start + length must not be
            above the capacity: what does not fit is not kept.

        Returns:
          [batch, length, width], for ``logits`` (of the last token alone, for instance), and the next cache. Sequences
          of several lengths are padded at their right ends: what a token gives does not depend on those behind it, and
          the next call, with its own start for each sequence, writes over their rows.
        """
        extension = kv_cache.Extension(cache, start, tokens, self._ops)
        x = self._embedded(tokens, extension.positions, None)
        for number, block in enumerate(self.blocks):
            x = block(x, cached=kv_cache.CachedLayer(extension, number))
        return self.norm(x), extension.cache

    def _embedded(self, tokens: tf.Tensor, positions: Any, key: tf.Tensor | None) -> tf.Tensor:
        return self.embedding(tokens)

    @property
    def _head(self) -> Embedding:
        return self.embedding if self.head is None else self.head
