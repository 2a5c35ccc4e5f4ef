"""Vision transformers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.models import encoding
from tftoolkit.models.blocks import Attention, Dense, LayerNorm, Mlp, TransformerBlock, dropped, normal
from tftoolkit.models.presets import WithPresets


class ViT(WithPresets):
    """A transformer over the patches of an image (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929).

    Args:
      width, layers, heads: of the model; width is a multiple of heads.
      patch: side of the squares that the image is cut into.
      image: side of the images; a multiple of patch.
      hidden: width of the feed-forward layers; 4 * width by default.
      classes: how many logits there are.
      channels: of the images.
      epsilon: of the norms: 1e-6 in torchvision, 1e-12 in Hugging Face's.
      dropout: probability with which elements of embeddings and of what attention and feed-forward layers give are
        dropped in training.
      dtype: of weights and activations: float32, bfloat16 or float16.
      seed: of the first weights, which are the same for every dtype but for rounding.
      ops: where ``layer_norm``, ``flash_attention`` and ``dropout_add`` come from.

    Raises:
      ValueError: width is no multiple of heads, or image none of patch.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "vit_b_16": {"width": 768, "layers": 12, "heads": 12, "patch": 16},
        "vit_b_32": {"width": 768, "layers": 12, "heads": 12, "patch": 32},
        "vit_l_16": {"width": 1024, "layers": 24, "heads": 16, "patch": 16},
        "vit_l_32": {"width": 1024, "layers": 24, "heads": 16, "patch": 32},
        "vit_h_14": {"width": 1280, "layers": 32, "heads": 16, "patch": 14},
        "vit-base-patch16-224": {"width": 768, "layers": 12, "heads": 12, "patch": 16, "epsilon": 1e-12},
    }

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        patch: int,
        image: int = 224,
        hidden: int | None = None,
        classes: int = 1000,
        channels: int = 3,
        epsilon: float = 1e-6,
        dropout: float = 0.0,
        dtype: Any = tf.float32,
        seed: int = 0,
        ops: Any = custom_ops,
    ) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"image must be a multiple of patch, got image={image}, patch={patch}")
        rng = np.random.default_rng(seed)
        weights = {"deviation": 0.02, "dtype": dtype, "rng": rng}
        norm = {"epsilon": epsilon, "dtype": dtype, "ops": ops}
        self._dropout, self._ops = dropout, ops
        self.patches = PatchEmbedding(patch, channels, width, dtype=dtype, rng=rng)
        self.class_token = tf.Variable(tf.zeros([1, 1, width], dtype))
        self.position_embedding = normal(rng, [1, (image // patch) ** 2 + 1, width], 0.02, dtype)
        self.blocks = [
            TransformerBlock(
                Attention(width, heads, ops=ops, **weights),
                Mlp(width, hidden or 4 * width, ops=ops, **weights),
                LayerNorm(width, **norm),
                LayerNorm(width, **norm),
                dropout=dropout,
                ops=ops,
            )
            for _ in range(layers)
        ]
        self.norm = LayerNorm(width, **norm)
        self.head = Dense(width, classes, **weights)

    def __call__(self, images: tf.Tensor, *, key: tf.Tensor | None = None) -> tf.Tensor:
        """Logits, [batch, classes].

        Args:
          images: float [batch, image, image, channels].
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        return self.head(self.features(images, key=key))

    def features(self, images: tf.Tensor, *, key: tf.Tensor | None = None) -> tf.Tensor:
        """[batch, width] of the class token, of which ``head`` makes logits."""
        return self.norm(self.hidden_states(images, key=key)[-1][:, 0])

    def hidden_states(self, images: tf.Tensor, *, key: tf.Tensor | None = None) -> list[tf.Tensor]:
        """[batch, 1 + patches, width] in front of the first block and behind each."""
        x = self.patches(images)
        first = tf.broadcast_to(self.class_token, [tf.shape(x)[0], *self.class_token.shape[1:]])
        x = dropped(tf.concat([first, x], axis=1) + self.position_embedding, self._dropout, key, self._ops)
        return encoding.states(self.blocks, x, key=key)


class PatchEmbedding(tf.Module):
    """Each patch of an image as one row: a convolution whose stride is its size."""

    def __init__(self, patch: int, channels: int, width: int, *, dtype: Any, rng: np.random.Generator) -> None:
        super().__init__()
        self.kernel = normal(rng, [patch, patch, channels, width], (patch**2 * channels) ** -0.5, dtype)
        self.bias = tf.Variable(tf.zeros([width], dtype))

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """[batch, height, width, channels] → [batch, patches, width], row by row."""
        images = tf.cast(images, self.kernel.dtype)
        x = tf.nn.conv2d(images, self.kernel, strides=self.kernel.shape[0], padding="VALID") + self.bias
        return tf.reshape(x, [tf.shape(x)[0], x.shape[1] * x.shape[2], x.shape[3]])
