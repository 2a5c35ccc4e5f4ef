"""BERT: encoders of text."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models import encoding
from tftoolkit.models.blocks import Attention, Dense, Embedding, LayerNorm, Mlp, TransformerBlock, dropped, layer_keys
from tftoolkit.models.presets import WithPresets

HEADS = ("classes", "masked_lm")


class Bert(WithPresets):
    """BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

    Args:
      vocabulary: how many tokens there are.
      width, layers, heads: of the model; width is a multiple of heads.
      hidden: width of the feed-forward layers; 4 * width by default.
      context: how many positions there are.
      types: of segments.
      head: "masked_lm" for logits of each token, "classes" for logits of each sequence; None for none.
      classes: how many logits the head "classes" gives.
      epsilon: of the norms.
      dropout: probability with which elements of embeddings and of what attention and feed-forward layers give are
        dropped in training. The weights of attention are not.
      dtype: of weights and activations: float32, bfloat16 or float16.
      seed: of the first weights, which are the same for every dtype but for rounding.
      ops: where ``layer_norm``, ``flash_attention`` and ``dropout_add`` come from.

    Raises:
      ValueError: width is no multiple of heads; there is no such head.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "bert-base-uncased": {"width": 768, "layers": 12, "heads": 12},
        "bert-base-cased": {"vocabulary": 28_996, "width": 768, "layers": 12, "heads": 12},
        "bert-large-uncased": {"width": 1024, "layers": 24, "heads": 16},
        "bert-large-cased": {"vocabulary": 28_996, "width": 1024, "layers": 24, "heads": 16},
    }

    def __init__(
        self,
        vocabulary: int = 30_522,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int | None = None,
        context: int = 512,
        types: int = 2,
        head: str | None = None,
        classes: int = 2,
        epsilon: float = 1e-12,
        dropout: float = 0.0,
        dtype: Any = tf.float32,
        seed: int = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        if head is not None and head not in HEADS:
            raise ValueError(f"head must be None or one of {', '.join(HEADS)}, got {head!r}")
        rng = np.random.default_rng(seed)
        weights = {"deviation": 0.02, "dtype": dtype, "rng": rng}
        norm = {"epsilon": epsilon, "dtype": dtype, "ops": ops}
        self.vocabulary, self.context = vocabulary, context
        self._dropout, self._ops = dropout, ops
        self.embedding = Embedding(vocabulary, width, dtype=dtype, rng=rng)
        self.position_embedding = Embedding(context, width, dtype=dtype, rng=rng)
        self.type_embedding = Embedding(types, width, dtype=dtype, rng=rng)
        self.norm = LayerNorm(width, **norm)
        self.blocks = [
            TransformerBlock(
                Attention(width, heads, ops=ops, **weights),
                Mlp(width, hidden or 4 * width, ops=ops, **weights),
                LayerNorm(width, **norm),
                LayerNorm(width, **norm),
                norm_first=False,
                dropout=dropout,
                ops=ops,
            )
            for _ in range(layers)
        ]
        self.pooler = Dense(width, width, **weights) if head != "masked_lm" else None
        self.classifier = Dense(width, classes, **weights) if head == "classes" else None
        self.masked_lm = MaskedLanguageHead(vocabulary, width, weights, norm) if head == "masked_lm" else None

    def __call__(
        self, tokens: tf.Tensor, *, lengths: Any = None, types: Any = None, key: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Logits of the head: [batch, length, vocabulary] or [batch, classes]; without one, what ``hidden`` gives."""
        x = self.hidden(tokens, lengths=lengths, types=types, key=key)
        if self.masked_lm is not None:
            return self.masked_lm(x, self.embedding)
        if self.classifier is not None:
            key = layer_keys(key, len(self.blocks) + 1)[-1]
            return self.classifier(dropped(self.pooled(x), self._dropout, key, self._ops))
        return x

    def hidden(
        self, tokens: tf.Tensor, *, lengths: Any = None, types: Any = None, key: tf.Tensor | None = None
    ) -> tf.Tensor:
        """int [batch, length] → [batch, length, width].

        Args:
          tokens: at most ``context`` of each sequence.
          lengths: int32[batch], how many tokens of each sequence count; those behind them are padding.
          types: int [batch, length], the segment of each token; 0 by default.
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        return self.hidden_states(tokens, lengths=lengths, types=types, key=key)[-1]

    def hidden_states(
        self, tokens: tf.Tensor, *, lengths: Any = None, types: Any = None, key: tf.Tensor | None = None
    ) -> list[tf.Tensor]:
        """[batch, length, width] in front of the first block and behind each; arguments as of ``hidden``."""
        x = self.embedding(tokens) + self.position_embedding(tf.range(tf.shape(tokens)[1]))
        x = self.norm(x + self.type_embedding(tf.zeros_like(tokens) if types is None else types))
        return encoding.states(self.blocks, dropped(x, self._dropout, key, self._ops), lengths=lengths, key=key)

    def pooled(self, hidden: tf.Tensor) -> tf.Tensor:
        """[batch, length, width] → [batch, width], of the first token."""
        if self.pooler is None:
            raise ValueError("with head='masked_lm' there is no pooler")
        return tf.tanh(self.pooler(hidden[:, 0]))


class MaskedLanguageHead(tf.Module):
    """Logits of each token: a dense layer, a norm, and the embedding's rows once more."""

    def __init__(self, vocabulary: int, width: int, weights: dict[str, Any], norm: dict[str, Any]) -> None:
        super().__init__()
        self.dense, self.norm = Dense(width, width, **weights), LayerNorm(width, **norm)
        self.bias = tf.Variable(tf.zeros([vocabulary], weights["dtype"]))

    def __call__(self, hidden: tf.Tensor, embedding: Embedding) -> tf.Tensor:
        return embedding.logits(self.norm(tf.nn.gelu(self.dense(hidden)))) + self.bias
