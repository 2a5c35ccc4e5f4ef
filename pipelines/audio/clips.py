"""Waveforms or spectrograms of many examples as one flat tensor, whether or not they have the same length."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example


class Clips:
    """The clips of a batch one after the other.

    Attributes:
      flat: [positions, ...]: all clips along one axis, of samples or frames.
      lengths: int64[n], their lengths along it.
    """

    def __init__(self, like: Any, flat: tf.Tensor, lengths: tf.Tensor) -> None:
        self._like = like  # the feature it was made of, which tells how to pack the result
        self.flat = flat
        self.lengths = lengths

    @classmethod
    def of(cls, feature: Any) -> "Clips":
        if isinstance(feature, tf.RaggedTensor):
            return cls(feature, feature.values, tf.cast(feature.row_lengths(), tf.int64))
        count, length = tf.unstack(tf.shape(feature, tf.int64)[:2])
        return cls(feature, tf.reshape(feature, [-1, *feature.shape[2:]]), tf.fill([count], length))

    def owners(self) -> tf.Tensor:
        """int64[positions]: for every position the number of the clip that it belongs to."""
        return tf.repeat(tf.range(tf.size(self.lengths, tf.int64)), self.lengths)

    def positions(self) -> tf.Tensor:
        """int64[positions]: 0, 1, 2, … within each clip."""
        starts = tf.cumsum(self.lengths, exclusive=True)
        return tf.range(tf.shape(self.flat, tf.int64)[0]) - tf.gather(starts, self.owners())

    def maxima(self, values: tf.Tensor) -> tf.Tensor:
        """The maximum over each clip: values [positions] -> [n]."""
        return tf.math.unsorted_segment_max(values, self.owners(), tf.size(self.lengths))

    def packed(self, flat: tf.Tensor) -> Any:
        """``flat`` [positions, ...] as the feature came: a dense tensor [n, length, ...] or a ragged one."""
        if isinstance(self._like, tf.RaggedTensor):
            return self._like.with_values(flat)
        shape = tf.concat([tf.shape(self._like)[:2], tf.shape(flat)[1:]], 0)
        return tf.ensure_shape(tf.reshape(flat, shape), self._like.shape[:2].concatenate(flat.shape[1:]))


def waveform_of(stage: str, rows: Example) -> Any:
    """The feature "waveform", checked to be floating point of shape [samples]."""
    waveform = _checked(stage, rows, "waveform", ("samples",))
    if not waveform.dtype.is_floating:
        raise ValueError(f"{stage}: 'waveform' must be floating point, got {waveform.dtype.name}; scale it to [-1, 1]")
    return waveform


def spectrogram_of(stage: str, rows: Example) -> Any:
    """The feature "spectrogram", checked to be of shape [frames, mels]."""
    return _checked(stage, rows, "spectrogram", ("frames", "mels"))


def _checked(stage: str, rows: Example, feature: str, shape: tuple[str, ...]) -> Any:
    if feature not in rows:
        raise ValueError(f"{stage}: the example has no feature {feature!r}, only {sorted(rows)}")
    value = rows[feature]
    if value.shape.rank != len(shape) + 1:
        hint = "; average the channels first" if feature == "waveform" and value.shape.rank == 3 else ""
        raise ValueError(f"{stage}: {feature!r} must have shape [{', '.join(shape)}], got {value.shape[1:]}{hint}")
    return value


def sum_in_order(term: Callable[[tf.Tensor], tf.Tensor], count: int) -> tf.Tensor:
    """term(0) + term(1) + … + term(count - 1), in this order.

    A loop and not ``count`` additions: TensorFlow's graph optimizer may regroup those, which changes the last bits.
    """
    start = (tf.constant(1), term(tf.constant(0)))
    _, total = tf.while_loop(
        lambda k, _: k < count, lambda k, total: (k + 1, total + term(k)), start, maximum_iterations=count
    )
    return total


def weighted_sums(columns: tf.Tensor, first: np.ndarray, weights: np.ndarray) -> tf.Tensor:
    """Row i of the result is Σ_k weights[i, k] · columns[first[i] + k], added up in the order of k.

    columns [m, positions], first int[r], weights float[r, width] -> [r, positions]. Weights that reach past the last
    column must be 0.
    """
    begin = tf.constant(first, tf.int32)
    by_step = tf.constant(weights.T[:, :, np.newaxis], columns.dtype)

    def term(k: tf.Tensor) -> tf.Tensor:
        return tf.gather(columns, tf.minimum(begin + k, columns.shape[0] - 1)) * by_step[k]

    return sum_in_order(term, weights.shape[1])
