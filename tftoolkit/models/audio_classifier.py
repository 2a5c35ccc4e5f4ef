"""A classifier of short sounds that takes the waveform: the spectrogram is part of the model."""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.audio.spectrum import mel_matrix

_FLOOR, _SCALE = 1e-10, 2.0**22


class LogMel(tf.Module):
    """Log-mel spectrogram, as ``pipelines.audio.log_mel`` makes it, of operations that every target has.

    The windowed discrete Fourier transform is one convolution.

    Args: as those of ``pipelines.audio.log_mel``, whose defaults for the rest hold (Slaney's scale, centred frames).

    Raises ValueError where a mel band holds no frequency of the transform.
    """

    def __init__(
        self, sample_rate: int, *, mels: int, fft_length: int, hop_length: int, dynamic_range_db: float = 80.0
    ) -> None:
        super().__init__()
        bins = np.arange(fft_length // 2 + 1)
        window = np.hanning(fft_length + 1)[:-1]
        angles = 2 * np.pi * np.outer(np.arange(fft_length), bins) / fft_length
        waves = window[:, np.newaxis] * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
        # Powers are _SCALE times too large, so that the smallest is no 0 where constants are float16.
        self._waves = (2**6 * waves[:, np.newaxis]).astype(np.float32)
        self._mels = (2**10 * mel_matrix(sample_rate, fft_length, mels)).astype(np.float32)
        self._bins, self._side, self._hop, self._range = len(bins), fft_length // 2, hop_length, dynamic_range_db

    def __call__(self, waveform: tf.Tensor) -> tf.Tensor:
        """float32 [batch, samples] → dB, float32 [batch, 1 + samples // hop_length, mels]."""
        padded = tf.pad(waveform, [[0, 0], [self._side, self._side]])[..., tf.newaxis]
        spectrum = tf.nn.conv1d(padded, tf.constant(self._waves), stride=self._hop, padding="VALID")
        power = spectrum[..., : self._bins] ** 2 + spectrum[..., self._bins :] ** 2
        mel = tf.maximum(power @ tf.constant(self._mels), _FLOOR * _SCALE)
        decibel = (tf.math.log(mel) - np.log(_SCALE)) * (10 / np.log(10))
        return tf.maximum(decibel, tf.reduce_max(decibel, axis=[1, 2], keepdims=True) - self._range)


class SpectrogramClassifier(tf.Module):
    """Three convolutions, each followed by pooling, and a linear layer on the mean over time.

    Args:
      mels, classes: of inputs and outputs.
      width: outputs of the first convolution; each of the others has twice as many as the one before.
      dropout: probability with which an input of the linear layer is dropped in training.
      seed: decides the first weights.
    """

    def __init__(self, mels: int, classes: int, *, width: int = 16, dropout: float = 0.3, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        widths = [1, width, 2 * width, 4 * width]
        self.kernels = [
            tf.Variable(rng.standard_normal([3, 3, *pair]) * (2 / (9 * pair[0])) ** 0.5, dtype=tf.float32)
            for pair in itertools.pairwise(widths)
        ]
        self.biases = [tf.Variable(tf.zeros(columns)) for columns in widths[1:]]
        features = mels // 8 * widths[-1]
        self.classes = tf.Variable(rng.standard_normal([features, classes]) / features**0.5, dtype=tf.float32)
        self.classes_bias = tf.Variable(tf.zeros(classes))
        self.dropout = dropout

    def __call__(self, spectrogram: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
        """Logits, float32 [batch, classes].

        Args:
          spectrogram: dB, float32 [batch, frames, mels].
          key: int32[2], the seed of the dropout in training; None: no dropout.
        """
        x = (spectrogram[..., tf.newaxis] + 40) / 40
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, strides=1, padding="SAME") + bias)
            x = tf.nn.max_pool2d(x, ksize=2, strides=2, padding="VALID")
        x = tf.reduce_mean(x, axis=1)
        x = tf.reshape(x, [-1, self.classes.shape[0]])
        if key is not None:
            x = tf.nn.experimental.stateless_dropout(x, rate=self.dropout, seed=key)
        return x @ self.classes + self.classes_bias
