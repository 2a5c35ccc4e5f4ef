"""Stages on waveforms: resampling and noise."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.audio.clips import Clips, sum_in_order, waveform_of
from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.resampling import ZERO_CROSSINGS, low_pass
from tftoolkit.pipelines.sources.source import Example

_SNR_STEPS = 1 << 10
_QUANTUM = 1 << 15


def resample(from_hz: int, to_hz: int) -> Vectorized:
    """Changes the sampling rate by a polyphase filter: "waveform" [samples] -> [⌈samples · to_hz / from_hz⌉].

    The filter is that of ``scipy.signal.resample_poly``: a sinc cut at the lower of the two Nyquist frequencies, ten
    zero crossings on each side, under a Kaiser window with β = 5. Up to 0.85 of that frequency tones keep their
    amplitude within 0.1 dB, at it they lose 6 dB, and what lies above 1.2 of it is at least 55 dB down. Outside of the
    clip it takes zeros. Where the example has a feature "sample_rate" it is set to ``to_hz``.

    Raises:
      TypeError, ValueError: a rate is no integer ≥ 1; the waveform is missing or not floating point of shape [samples].
    """
    common = math.gcd(integer("from_hz", from_hz, 1), integer("to_hz", to_hz, 1))
    up, down = to_hz // common, from_hz // common
    half = ZERO_CROSSINGS * max(up, down)
    taps = -(-(2 * half + 1) // up)
    # taps × up: row k holds, for each phase, the weight of the k-th sample back.
    phases = np.pad(low_pass(up, down), [0, taps * up - (2 * half + 1)]).reshape(taps, up)

    def over_rows(rows: Example) -> Example:
        waveform = waveform_of("resample", rows)
        ragged = isinstance(waveform, tf.RaggedTensor)
        lengths = waveform.row_lengths() if ragged else tf.shape(waveform, tf.int64)[1:2]
        dense = waveform.to_tensor() if ragged else waveform
        longest = tf.shape(dense, tf.int64)[1]
        # Centred on output sample j, the filter begins at input sample (j · down + half) // up and goes back.
        at = tf.range((longest * up + down - 1) // down) * down + half
        newest, phase = at // up, at % up
        margin = tf.stack([taps, tf.maximum(0, half // up + 1)])
        padded = tf.pad(dense, [[0, 0], margin])
        weights = tf.constant(phases, waveform.dtype)

        def tap(k: tf.Tensor) -> tf.Tensor:
            return tf.gather(padded, newest + taps - tf.cast(k, tf.int64), axis=1) * tf.gather(weights[k], phase)

        total = sum_in_order(tap, taps)
        if ragged:
            result = tf.RaggedTensor.from_tensor(total, (lengths * up + down - 1) // down)
        else:
            size = None if waveform.shape[1] is None else -(-waveform.shape[1] * up // down)
            result = tf.ensure_shape(total, [waveform.shape[0], size])
        rows = {**rows, "waveform": result}
        if "sample_rate" in rows:
            rows["sample_rate"] = tf.ones_like(rows["sample_rate"]) * to_hz
        return rows

    return Vectorized(f"resample({from_hz}, {to_hz})", over_rows)


def mix_noise(noises: Sequence[Any], snr_db: tuple[float, float]) -> Vectorized:
    """Adds noise at a random signal-to-noise ratio: "waveform" [samples] -> same shape and dtype.

    One of the noises, the place where it begins and the ratio are drawn evenly; a noise shorter than the clip starts
    over at its end. The ratio is that of the powers of the whole clip and of the noise that is added to it. A silent
    clip stays silent, silent noise changes nothing.

    Args:
      noises: waveforms of the clips' sampling rate, 1-D arrays of any length ≥ 1.
      snr_db: lowest and highest ratio in dB; 1025 evenly spaced values from one to the other are drawn.

    Raises:
      TypeError, ValueError: not such arguments; the waveform is missing or not floating point of shape [samples].
    """
    bank = [np.asarray(noise, np.float32) for noise in noises]
    if not bank or any(noise.ndim != 1 or not noise.size or not np.isfinite(noise).all() for noise in bank):
        raise ValueError("noises: expected at least one array of finite samples, each of shape [samples]")
    if not isinstance(snr_db, Sequence) or isinstance(snr_db, str) or len(snr_db) != 2:
        raise TypeError(f"snr_db: expected (lowest, highest) in dB, got {snr_db!r}")
    low, high = map(float, snr_db)
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"snr_db={snr_db!r}: expected (lowest, highest) in dB")
    samples = np.concatenate(bank)
    sizes = np.array([len(noise) for noise in bank], np.int64)
    # A table instead of 10^x: the power function may round differently in a batch of another size.
    gains = 10 ** (-np.linspace(low, high, _SNR_STEPS + 1) / 20)
    digest = hashlib.sha256(samples.tobytes() + sizes.tobytes()).hexdigest()[:8]

    def over_rows(rows: Example, keys: tf.Tensor) -> Example:
        clips = Clips.of(waveform_of("mix_noise", rows))
        owners = clips.owners()
        chosen = uniform_int(keys, 1, len(bank))[:, 0]
        draws = uniform_int(keys, 3, 2**31 - 1)
        size = tf.gather(sizes, chosen)
        begin = below(draws[:, 1], size)
        place = tf.gather(np.cumsum(sizes) - sizes, chosen)
        within = (tf.gather(begin, owners) + clips.positions()) % tf.gather(size, owners)
        noise = tf.gather(samples, tf.gather(place, owners) + within)
        ratio = _root_energy(clips, clips.flat) * tf.gather(gains, below(draws[:, 2], _SNR_STEPS + 1))
        gain = tf.math.divide_no_nan(ratio, _root_energy(clips, noise))
        added = tf.cast(tf.gather(gain, owners), tf.float32) * noise
        return {**rows, "waveform": clips.packed(clips.flat + tf.cast(added, clips.flat.dtype))}

    return Vectorized(f"mix_noise({len(bank)} noises {digest}, snr_db=({low:g}, {high:g}))", over_rows)


def _root_energy(clips: Clips, samples: tf.Tensor) -> tf.Tensor:
    """√Σ samples² of each clip, float64[n], to five digits or more.

    The samples are rounded to 1/32768 of the clip's peak, so that the sum is one of integers: exact in any order.
    """
    peaks = clips.maxima(tf.abs(samples))
    relative = tf.math.divide_no_nan(samples, tf.gather(peaks, clips.owners()))
    squares = tf.cast(tf.round(relative * _QUANTUM), tf.int64) ** 2
    energies = tf.math.unsorted_segment_sum(squares, clips.owners(), tf.size(clips.lengths))
    return tf.sqrt(tf.cast(energies, tf.float64)) * tf.cast(peaks, tf.float64) / _QUANTUM


def below(draws: tf.Tensor, limits: tf.Tensor | int) -> tf.Tensor:
    """Integers in [0, limits) made of draws in [0, 2**31 - 1): int64, evenly up to limits / 2**31."""
    return tf.cast(draws, tf.int64) * tf.cast(limits, tf.int64) // (2**31 - 1)
