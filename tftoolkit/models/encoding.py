"""What encoders share: blocks in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.models.blocks import TransformerBlock, layer_keys


def states(
    blocks: Sequence[TransformerBlock], x: tf.Tensor, *, lengths: Any = None, key: tf.Tensor | None = None
) -> list[tf.Tensor]:
    """[batch, length, width] in front of the first block and behind each."""
    found = [x]
    for block, one in zip(blocks, layer_keys(key, len(blocks)), strict=True):
        found.append(block(found[-1], lengths=lengths, key=one))
    return found
