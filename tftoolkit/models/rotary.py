"""Positions as angles by which queries and keys are turned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit import custom_ops


class Rotary(tf.Module):
    """``custom_ops.rotary_embedding`` with its settings: turns queries and keys by their positions.

    Args:
      base: of the wavelengths; also called theta.
      scaling: how the wavelengths of Llama 3.1 and later were stretched, as in their files of settings: ``factor``,
        ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``; others are not looked at.
        With it plain operations turn.

    Raises ValueError where ``scaling`` lacks one of the four.
    """

    def __init__(
        self, *, base: float = 10_000.0, scaling: Mapping[str, float] | None = None, ops: Any = custom_ops
    ) -> None:
        super().__init__()
        self._base, self._rotary_embedding = base, ops.rotary_embedding
        self._stretch = None if scaling is None else _Stretch(scaling)

    def __call__(self, x: tf.Tensor, positions: tf.Tensor | None = None, capacity: int | None = None) -> tf.Tensor:
        """[batch, length, heads, depth] → the same.

        Args:
          x: queries or keys.
          positions: int32 [length] or [batch, length]; 0, 1, … by default.
          capacity: what positions are below, where that is known. Sines and cosines are then rows of a table, and
            nothing is computed in float64, which LiteRT could not.
        """
        if self._stretch is None and (positions is None or capacity is None):
            return self._rotary_embedding(x, positions, base=self._base)
        half = x.shape[-1] // 2
        speeds = self._base ** (-np.arange(half) / half)
        speeds = speeds if self._stretch is None else self._stretch(speeds)
        positions = tf.range(tf.shape(x)[1]) if positions is None else positions
        if capacity is None:
            angles = tf.cast(positions, tf.float64)[..., tf.newaxis] * speeds
            turns = [tf.cast(turn, tf.float32) for turn in (tf.cos(angles), tf.sin(angles))]
        else:
            angles = np.arange(capacity)[:, None] * speeds
            turns = [tf.gather(tf.constant(turn, tf.float32), positions) for turn in (np.cos(angles), np.sin(angles))]
        cosine, sine = (turn[..., tf.newaxis, :] for turn in turns)
        one, other = tf.split(tf.cast(x, tf.float32), 2, axis=-1)
        return tf.cast(tf.concat([one * cosine - other * sine, other * cosine + one * sine], -1), x.dtype)


class _Stretch:
    """Wavelengths as long as the context of the first training become ``factor`` times as long; short ones stay."""

    def __init__(self, scaling: Mapping[str, float]) -> None:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        if lost := [name for name in names if name not in scaling]:
            raise ValueError(f"scaling must be that of Llama 3.1, with {', '.join(names)}; it has no {', '.join(lost)}")
        self._factor, self._low, self._high, self._length = (float(scaling[name]) for name in names)

    def __call__(self, speeds: np.ndarray) -> np.ndarray:
        turns = self._length * speeds / (2 * np.pi)  # in the whole of that context
        kept = np.clip((turns - self._low) / (self._high - self._low), 0, 1)
        return speeds * (kept + (1 - kept) / self._factor)
