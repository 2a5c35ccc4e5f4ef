"""GPT-2: decoders with learned positions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models.blocks import Attention, Embedding, LayerNorm, Mlp, TransformerBlock, dropped
from tftoolkit.models.decoding import DecoderModel


class Gpt2(DecoderModel):
    """GPT-2 (Radford et al. 2019). The head's weights are the embedding's.

    Args:
      vocabulary: how many tokens there are.
      width, layers, heads: of the model; width is a multiple of heads.
      hidden: width of the feed-forward layers; 4 * width by default.
      context: how many positions there are.
      epsilon: of the norms.
      dropout: probability with which elements of embeddings and of what attention and feed-forward layers give are
        dropped in training. The weights of attention are not.
      dtype: of weights and activations: float32, bfloat16 or float16.
      seed: of the first weights, which are the same for every dtype but for rounding.
      ops: where ``layer_norm``, ``flash_attention``, ``fused_linear_cross_entropy`` and ``dropout_add`` come from.

    Raises:
      ValueError: width is no multiple of heads.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2": {"width": 768, "layers": 12, "heads": 12},
        "gpt2-medium": {"width": 1024, "layers": 24, "heads": 16},
        "gpt2-large": {"width": 1280, "layers": 36, "heads": 20},
        "gpt2-xl": {"width": 1600, "layers": 48, "heads": 25},
        "distilgpt2": {"width": 768, "layers": 6, "heads": 12},
    }

    def __init__(
        self,
        vocabulary: int = 50_257,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int | None = None,
        context: int = 1024,
        epsilon: float = 1e-5,
        dropout: float = 0.0,
        dtype: Any = tf.float32,
        seed: int = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__(vocabulary, context, dropout, dtype, ops)
        rng = np.random.default_rng(seed)
        # The sum of 2 * layers outputs is to have the deviation that one has.
        weights = {"deviation": 0.02, "out_deviation": 0.02 / (2 * layers) ** 0.5, "dtype": dtype, "rng": rng}
        norm = {"epsilon": epsilon, "dtype": dtype, "ops": ops}
        self.embedding = Embedding(vocabulary, width, dtype=dtype, rng=rng)
        self.position_embedding = Embedding(context, width, dtype=dtype, rng=rng)
        self.blocks = [
            TransformerBlock(
                Attention(width, heads, causal=True, ops=ops, **weights),
                Mlp(width, hidden or 4 * width, activation="gelu_tanh", ops=ops, **weights),
                LayerNorm(width, **norm),
                LayerNorm(width, **norm),
                dropout=dropout,
                ops=ops,
            )
            for _ in range(layers)
        ]
        self.norm = LayerNorm(width, **norm)
        self.head = None

    def _embedded(self, tokens: tf.Tensor, positions: Any, key: tf.Tensor | None) -> tf.Tensor:
        positions = tf.range(tf.shape(tokens)[1]) if positions is None else positions
        return dropped(self.embedding(tokens) + self.position_embedding(positions), self._dropout, key, self._ops)
