"""Decoders of today's kind: RMS norms, rotary positions, gated feed-forward layers, grouped queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models.blocks import Attention, Embedding, Mlp, RmsNorm, TransformerBlock
from tftoolkit.models.decoding import DecoderModel
from tftoolkit.models.rotary import Rotary

_LLAMA_3_1 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Llama(DecoderModel):
    """Llama (Touvron et al. 2023, https://arxiv.org/abs/2302.13971) and what is built like it: Mistral, Qwen 2, SmolLM.

    Args:
      vocabulary: how many tokens there are.
      width, layers, heads: of the model.
      kv_heads: heads of keys and values, each shared by heads / kv_heads of queries; as many as heads by default.
      head_size: of queries, keys and values; width / heads by default. Even.
      hidden: width of the feed-forward layers; 3 * width by default.
      context: how many positions the model was made for; None: no limit is known.
      rotary_base: of the rotary embedding; also called theta.
      rotary_scaling: how Llama 3.1 and later stretch its wavelengths, as of ``Rotary``.
      epsilon: of the norms.
      qkv_bias: whether products of queries, keys and values have a bias, as in Qwen 2.
      tied: the head's weights are the embedding's.
      dropout: probability with which elements of what attention and feed-forward layers give are dropped in training.
      deviation: of the blocks' first weights; of what is added to the residual, divided by the root of 2 * layers, as
        in GPT-2 (0.02). 1 / sqrt(inputs) by default, with which a small model trained from scratch learns slowly: the
        sum of all that is added drowns the embedding.
      dtype: of weights and activations: float32, bfloat16 or float16.
      seed: of the first weights, which are the same for every dtype but for rounding.
      ops: where ``rms_norm``, ``rotary_embedding``, ``flash_attention``, ``swiglu``, ``fused_linear_cross_entropy`` and
        ``dropout_add`` come from: ``custom_ops``, or something that has others under these names, to compare them.

    Raises:
      ValueError: width is no multiple of heads, or heads none of kv_heads, or the size of a head is odd.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-2-7b": {
            **{"vocabulary": 32_000, "width": 4096, "layers": 32, "heads": 32, "hidden": 11_008},
            **{"context": 4096, "epsilon": 1e-5},
        },
        "llama-3-8b": {
            **{"vocabulary": 128_256, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "hidden": 14_336},
            **{"context": 8192, "epsilon": 1e-5, "rotary_base": 500_000.0},
        },
        "llama-3.2-1b": {
            **{"vocabulary": 128_256, "width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "hidden": 8192},
            **{"context": 131_072, "epsilon": 1e-5, "rotary_base": 500_000.0, "tied": True},
            **{"rotary_scaling": {"factor": 32.0, **_LLAMA_3_1}},
        },
        "tinyllama-1.1b": {
            **{"vocabulary": 32_000, "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "hidden": 5632},
            **{"context": 2048, "epsilon": 1e-5},
        },
        "smollm2-135m": {
            **{"vocabulary": 49_152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536},
            **{"context": 8192, "epsilon": 1e-5, "rotary_base": 100_000.0, "tied": True},
        },
        "qwen2-0.5b": {
            **{"vocabulary": 151_936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "hidden": 4864},
            **{"context": 131_072, "rotary_base": 1_000_000.0, "qkv_bias": True, "tied": True},
        },
    }

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int | None = None,
        head_size: int | None = None,
        hidden: int | None = None,
        context: int | None = None,
        rotary_base: float = 10_000.0,
        rotary_scaling: Mapping[str, float] | None = None,
        epsilon: float = 1e-6,
        qkv_bias: bool = False,
        tied: bool = False,
        dropout: float = 0.0,
        deviation: float | None = None,
        dtype: Any = tf.float32,
        seed: int = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__(vocabulary, context, dropout, dtype, ops)
        if head_size is None and width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        if (head_size or width // heads) % 2:
            raise ValueError(f"the size of a head must be even, got {head_size or width // heads}")
        rng = np.random.default_rng(seed)
        common = {"dtype": dtype, "ops": ops}
        first: dict[str, Any] = {"deviation": deviation, "out_deviation": deviation and deviation / (2 * layers) ** 0.5}
        rotary = Rotary(base=rotary_base, scaling=rotary_scaling, ops=ops)
        attention: dict[str, Any] = {"kv_heads": kv_heads, "head_size": head_size, "bias": qkv_bias, "out_bias": False}
        mlp = {"activation": "swiglu", "bias": False, **first, **common}
        self.embedding = Embedding(vocabulary, width, dtype=dtype, rng=rng)
        self.blocks = [
            TransformerBlock(
                Attention(width, heads, causal=True, rotary=rotary, rng=rng, **attention, **first, **common),
                Mlp(width, 3 * width if hidden is None else hidden, rng=rng, **mlp),
                RmsNorm(width, epsilon=epsilon, **common),
                RmsNorm(width, epsilon=epsilon, **common),
                dropout=dropout,
                ops=ops,
            )
            for _ in range(layers)
        ]
        self.norm = RmsNorm(width, epsilon=epsilon, **common)
        head = {"deviation": width**-0.5, "dtype": dtype, "rng": rng}
        self.head = None if tied else Embedding(vocabulary, width, **head)
