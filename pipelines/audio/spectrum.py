"""Stages that make spectrograms, and stages on spectrograms."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.audio.clips import Clips, spectrogram_of, waveform_of, weighted_sums
from tftoolkit.pipelines.audio.waveform import below
from tftoolkit.pipelines.keys import uniform_int
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example

_FLOOR = 1e-10  # of the mel power, as in librosa: -100 dB


def log_mel(
    sample_rate: int,
    *,
    mels: int = 80,
    fft_length: int = 512,
    window_length: int | None = None,
    hop_length: int = 160,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    scale: str = "slaney",
    center: bool = True,
    dynamic_range_db: float = 80.0,
) -> Vectorized:
    """Log-mel spectrogram in dB: "waveform" [samples] -> "spectrogram" [frames, mels], same dtype.

    The conventions are librosa's. A frame has ``fft_length`` samples, with a periodic Hann window of ``window_length``
    in its middle. With ``center`` frame t is centred on sample t · hop_length, with zeros beyond both ends, and there
    are 1 + samples // hop_length frames; without it frame t begins there, and there are
    1 + (samples - fft_length) // hop_length (none for a shorter clip). The mel power is the sum of |DFT|² under
    triangles whose corners are evenly spaced on the mel scale; dB = 10 · log10(max(mel power, 1e-10)), and whatever
    lies more than ``dynamic_range_db`` below the loudest value of the clip is raised to that.

    Args:
      sample_rate: of the clips, in Hz.
      mels: number of triangles.
      window_length: in samples, at most ``fft_length``, which is the default.
      low_hz, high_hz: the lower end of the first triangle and the upper end of the last; default up to Nyquist.
      scale: "slaney" (Slaney, Auditory Toolbox, 1998: linear below 1 kHz, logarithmic above; triangles of equal area,
        librosa's default) or "htk" (Young et al., The HTK Book: 2595 · log10(1 + f / 700); triangles of height 1).

    Raises:
      TypeError, ValueError: not such arguments, or a triangle so narrow that no bin of the DFT lies in it; the waveform
        is missing or not floating point of shape [samples].
    """
    window_length = fft_length if window_length is None else window_length
    integers = {"sample_rate": sample_rate, "mels": mels, "fft_length": fft_length}
    for name, value in {**integers, "window_length": window_length, "hop_length": hop_length}.items():
        integer(name, value, 1)
    if window_length > fft_length:
        raise ValueError(f"window_length={window_length}: must be at most fft_length={fft_length}")
    if not dynamic_range_db > 0:
        raise ValueError(f"dynamic_range_db={dynamic_range_db}: must be above 0")
    high_hz = sample_rate / 2 if high_hz is None else high_hz
    first, weights = _mel_triangles(sample_rate, fft_length, mels, low_hz, high_hz, scale)
    side = (fft_length - window_length) // 2
    window = np.pad(_hann(window_length), [side, fft_length - window_length - side])

    def over_rows(rows: Example) -> Example:
        waveform = waveform_of("log_mel", rows)
        clips = _frames(waveform, fft_length, hop_length, center)
        spectrum = tf.signal.rfft(clips.flat * tf.constant(window, waveform.dtype))
        power = tf.square(tf.math.real(spectrum)) + tf.square(tf.math.imag(spectrum))
        mel = tf.transpose(weighted_sums(tf.transpose(power), first, weights))
        decibel = 10 / math.log(10) * _log(tf.maximum(mel, _FLOOR))
        loudest = clips.maxima(tf.reduce_max(decibel, axis=1))
        floor = tf.gather(loudest - dynamic_range_db, clips.owners())
        return _replaced(rows, "waveform", "spectrogram", clips.packed(tf.maximum(decibel, floor[:, tf.newaxis])))

    parameters = f"{sample_rate}, mels={mels}, fft_length={fft_length}, window_length={window_length}, "
    parameters += f"hop_length={hop_length}, hz={low_hz:g}-{high_hz:g}, scale={scale}, center={center}, "
    return Vectorized(f"log_mel({parameters}dynamic_range_db={dynamic_range_db:g})", over_rows)


def mfcc(coefficients: int = 13) -> Vectorized:
    """Mel-frequency cepstral coefficients: "spectrogram" [frames, mels] -> "mfcc" [frames, coefficients].

    The first coefficients of the orthonormal DCT-II of each frame (Davis, Mermelstein, 1980), without liftering; the
    spectrogram is one of ``log_mel``, which sets its scale (librosa's).

    Raises:
      TypeError, ValueError: ``coefficients`` is not an integer in 1 … mels; the spectrogram is missing.
    """
    integer("coefficients", coefficients, 1)

    def over_rows(rows: Example) -> Example:
        clips = Clips.of(spectrogram_of("mfcc", rows))
        mels = clips.flat.shape[1]
        if mels < coefficients:
            raise ValueError(f"mfcc: coefficients={coefficients}, but the spectrogram has only {mels} mels")
        order = np.arange(coefficients)[:, None]
        basis = np.sqrt(2 / mels) * np.cos(np.pi * order * (2 * np.arange(mels) + 1) / (2 * mels))
        basis[0] /= np.sqrt(2)
        cepstrum = weighted_sums(tf.transpose(clips.flat), np.zeros(coefficients, int), basis)
        return _replaced(rows, "spectrogram", "mfcc", clips.packed(tf.transpose(cepstrum)))

    return Vectorized(f"mfcc({coefficients})", over_rows)


def spec_augment(
    *, frequency_masks: int = 2, max_mels: int = 27, time_masks: int = 2, max_frames: int = 100, max_share: float = 1.0
) -> Vectorized:
    """Masks random bands of mels and stretches of frames: "spectrogram" [frames, mels] -> same shape and dtype.

    After SpecAugment (Park et al., Interspeech 2019), without time warping; the defaults are the paper's policy LD. The
    width of each mask is even in 0 … ``max_mels`` or 0 … min(``max_frames``, ⌊``max_share`` · frames⌋), its place even
    among all where it lies within the spectrogram; masks may overlap. Where the paper, whose spectrograms have mean
    zero, sets zeros, the clip's smallest value is set, which is silence on any scale.

    Raises:
      TypeError, ValueError: a number out of range; the spectrogram is missing.
    """
    numbers = {"frequency_masks": frequency_masks, "max_mels": max_mels}
    for name, value in {**numbers, "time_masks": time_masks, "max_frames": max_frames}.items():
        integer(name, value, 0)
    if not 0 <= max_share <= 1:
        raise ValueError(f"max_share={max_share}: must be between 0 and 1")

    def over_rows(rows: Example, keys: tf.Tensor) -> Example:
        clips = Clips.of(spectrogram_of("spec_augment", rows))
        owners = clips.owners()
        mels = clips.flat.shape[1]
        draws = tf.unstack(uniform_int(keys, 2 * (frequency_masks + time_masks), 2**31 - 1), axis=1)

        def span(limit: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            """Begin and end of a mask of each clip, int64[n]."""
            width = below(draws.pop(), limit + 1)
            begin = below(draws.pop(), size - width + 1)
            return begin, begin + width

        all_mels = tf.fill(tf.shape(clips.lengths), tf.constant(mels, tf.int64))
        masked = tf.zeros(tf.shape(clips.flat), tf.bool)
        for _ in range(frequency_masks):
            begin, end = span(tf.minimum(all_mels, max_mels), all_mels)
            number = tf.range(mels, dtype=tf.int64)
            inside = (number >= begin[:, tf.newaxis]) & (number < end[:, tf.newaxis])
            masked |= tf.gather(inside, owners)
        share = tf.cast(tf.cast(clips.lengths, tf.float64) * max_share, tf.int64)
        for _ in range(time_masks):
            begin, end = span(tf.minimum(share, max_frames), clips.lengths)
            number = clips.positions()
            masked |= ((number >= tf.gather(begin, owners)) & (number < tf.gather(end, owners)))[:, tf.newaxis]
        quietest = -clips.maxima(-tf.reduce_min(clips.flat, axis=1))
        fill = tf.gather(quietest, owners)[:, tf.newaxis]
        return {**rows, "spectrogram": clips.packed(tf.where(masked, fill, clips.flat))}

    bands = f"frequency_masks={frequency_masks}, max_mels={max_mels}"
    stretches = f"time_masks={time_masks}, max_frames={max_frames}, max_share={max_share:g}"
    return Vectorized(f"spec_augment({bands}, {stretches})", over_rows)


def _replaced(rows: Example, old: str, new: str, value: Any) -> Example:
    return {**{name: feature for name, feature in rows.items() if name != old}, new: value}


def _frames(waveform: tf.Tensor | tf.RaggedTensor, length: int, hop: int, center: bool) -> Clips:
    """The frames of each clip, [frames of all clips, length]."""
    ragged = isinstance(waveform, tf.RaggedTensor)
    samples = waveform.to_tensor() if ragged else waveform
    side = length // 2 if center else 0
    # tf.signal.frame gives no frame at all, and the shape of none, where the whole batch is shorter than one.
    frames = tf.signal.frame(tf.pad(samples, [[0, 0], [side, side]]), length, hop)
    if not ragged:
        return Clips.of(frames)
    counts = 1 + (tf.cast(waveform.row_lengths(), tf.int64) + 2 * side - length) // hop
    return Clips.of(tf.RaggedTensor.from_tensor(frames, tf.maximum(counts, 0)))


def _log(values: tf.Tensor) -> tf.Tensor:
    """Natural logarithm, the same for a value wherever it stands.

    TensorFlow takes the logarithm of several values at once by another approximation than that of the few at the end
    of a tensor that do not fill a vector register; here none is left over.
    """
    count = tf.size(values)
    padded = tf.pad(tf.reshape(values, [-1]), [[0, -count % 64]], constant_values=1)
    return tf.reshape(tf.math.log(padded)[:count], tf.shape(values))


def _hann(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def _mel_triangles(
    sample_rate: int, fft_length: int, mels: int, low_hz: float, high_hz: float, scale: str
) -> tuple[np.ndarray, np.ndarray]:
    """For each mel the first DFT bin under its triangle, int[mels], and the weights from there on, [mels, width]."""
    weights = mel_matrix(sample_rate, fft_length, mels, low_hz, high_hz, scale).T
    used = weights > 0
    first = used.argmax(axis=1)
    width = int(used.sum(axis=1).max())
    padded = np.pad(weights, [(0, 0), (0, width)])
    return first, np.stack([row[begin : begin + width] for row, begin in zip(padded, first, strict=True)])


def mel_matrix(
    sample_rate: int,
    fft_length: int,
    mels: int,
    low_hz: float = 0.0,
    high_hz: float | None = None,
    scale: str = "slaney",
) -> np.ndarray:
    """What a power spectrum is multiplied with: float64[fft_length // 2 + 1, mels]; see ``log_mel``."""
    high_hz = sample_rate / 2 if high_hz is None else high_hz
    if scale not in ("slaney", "htk"):
        raise ValueError(f"scale={scale!r}: expected 'slaney' or 'htk'")
    if not 0 <= low_hz < high_hz <= sample_rate / 2:
        raise ValueError(f"low_hz={low_hz}, high_hz={high_hz}: expected 0 ≤ low_hz < high_hz ≤ {sample_rate / 2}")
    corners = mel_frequencies(mels + 2, low_hz, high_hz, scale)
    lower, peak, upper = (corners[i : i + mels, None] for i in range(3))
    bins = np.arange(fft_length // 2 + 1) * sample_rate / fft_length
    weights = np.maximum(0, np.minimum((bins - lower) / (peak - lower), (upper - bins) / (upper - peak)))
    if scale == "slaney":
        weights *= 2 / (upper - lower)
    if not weights.any(axis=1).all():
        empty = int(np.argmin(weights.any(axis=1)))
        raise ValueError(
            f"mels={mels}: no bin of the DFT lies under triangle {empty} ({lower[empty, 0]:.0f} to "
            f"{upper[empty, 0]:.0f} Hz); use fewer mels or a longer fft_length"
        )
    matrix: np.ndarray = weights.T
    return matrix


def mel_frequencies(count: int, low_hz: float, high_hz: float, scale: str) -> np.ndarray:
    """``count`` frequencies in Hz from ``low_hz`` to ``high_hz``, evenly spaced on the mel scale; see ``log_mel``."""
    if scale == "htk":
        low, high = (2595 * np.log10(1 + hz / 700) for hz in (low_hz, high_hz))
        return 700 * (10 ** (np.linspace(low, high, count) / 2595) - 1)
    # Below 1 kHz three mels for 200 Hz; above it a factor of 6.4 for 27 mels.
    knee, per_mel = 15.0, np.log(6.4) / 27
    low, high = (
        hz * 3 / 200 if hz < 1000 else knee + np.log(hz / 1000) / per_mel for hz in (float(low_hz), float(high_hz))
    )
    mel = np.linspace(low, high, count)
    return np.where(mel < knee, mel * 200 / 3, 1000 * np.exp((mel - knee) * per_mel))
