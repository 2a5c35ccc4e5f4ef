"""Audio stages: against float64 references, and the same for a clip alone as in any batch.

A long file: each transform with the library that it is compared with.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.io.wavfile
import scipy.signal
import tensorflow as tf

from tftoolkit.pipelines import Pipeline, audio, sources
from tftoolkit.pipelines.audio.spectrum import mel_frequencies

RNG = np.random.default_rng(0)
CHIRP = scipy.signal.chirp(np.arange(16000) / 16000, 100, 1, 7000).astype(np.float32)
CLIPS = [(RNG.normal(size=n) * 0.1).astype(np.float32) for n in (4000, 1, 6123, 333, 2048, 512, 1601)]
NOISES = [RNG.normal(size=700).astype(np.float32), RNG.normal(size=9000).astype(np.float32)]
LOG_MEL = audio.log_mel(16000, mels=40, window_length=400)


def keys_for(count: int, seed: int = 0) -> tf.Tensor:
    return tf.constant(np.random.default_rng(seed).integers(-(2**31), 2**31, (count, 2)), tf.int32)


def feature_of(stage: Any) -> str:
    return "spectrogram" if stage.__name__.startswith(("mfcc", "spec_augment")) else "waveform"


def of(stage: Any, clip: Any, *key: Any) -> np.ndarray:
    """What the stage makes of one clip."""
    (result,) = stage({feature_of(stage): tf.constant(clip)}, *key).values()
    return result.numpy()


# ---- a clip alone, in a dense batch, in a ragged batch


STAGES = {
    "resample": [audio.resample(44100, 16000)],
    "mix_noise": [audio.mix_noise(NOISES, (0, 20))],
    "log_mel": [audio.log_mel(16000, mels=30, center=False, scale="htk")],
    "mfcc": [LOG_MEL, audio.mfcc(13)],
    "spec_augment": [LOG_MEL, audio.spec_augment(max_frames=10, max_mels=9)],
}


@pytest.mark.parametrize(
    ("name", "length"),
    [
        *(("resample", "same"), ("resample", "different"), ("log_mel", "same"), ("mfcc", "different")),
        *(("spec_augment", "different"), ("mix_noise", "different")),
        *(pytest.param(name, "same", marks=pytest.mark.slow) for name in ("mfcc", "spec_augment", "mix_noise")),
        pytest.param("log_mel", "different", marks=pytest.mark.slow),
    ],
)
def test_a_clip_alone_gives_the_same_bits_as_in_any_batch(name: str, length: str) -> None:
    stages = STAGES[name]
    clips = CLIPS if length == "different" else [np.resize(clip, 3001) for clip in CLIPS]
    keys = keys_for(len(clips))
    keyed = [stage.__name__.startswith(("mix", "spec")) for stage in stages]

    def run(feature: Any, keys: tf.Tensor) -> Any:
        rows = {"waveform": feature}
        for stage, takes_key in zip(stages, keyed, strict=True):
            rows = stage.over_rows(rows, keys) if takes_key else stage.over_rows(rows)
        (result,) = rows.values()
        return result

    if length == "different":
        feature, spec = tf.ragged.constant(clips), tf.RaggedTensorSpec([None, None], tf.float32)
    else:
        feature, spec = tf.stack(clips), tf.TensorSpec([None, 3001], tf.float32)
    graph = tf.function(run, autograph=False, input_signature=[spec, tf.TensorSpec([None, 2], tf.int32)])
    together = graph(feature, keys)
    for number, clip in enumerate(clips):
        alone = {"waveform": tf.constant(clip)}
        for stage, takes_key in zip(stages, keyed, strict=True):
            alone = stage(alone, keys[number]) if takes_key else stage(alone)
        np.testing.assert_array_equal(together[number], *alone.values())
    some = [5, 1]
    pair = graph(tf.gather(feature, some), tf.gather(keys, some))
    for row, number in enumerate(some):
        np.testing.assert_array_equal(pair[row], together[number])
    assert graph(feature[:0], keys[:0]).shape[0] == 0


@pytest.mark.slow
def test_in_a_pipeline_for_every_batch_size() -> None:
    source = sources.arrays({"waveform": np.stack([np.resize(clip, 3000) for clip in CLIPS]), "id": np.arange(7)})
    p = Pipeline(source, seed=5).shuffle()
    for stage in (audio.mix_noise(NOISES, (0, 20)), LOG_MEL, audio.spec_augment(max_frames=5)):
        p = p.map(stage)
    seen = []
    for size in (2, 7):
        dataset = p.batch(size).dataset(epochs=1)
        batches = list(dataset)
        order = np.concatenate([batch["id"] for batch in batches])
        seen.append(np.concatenate([batch["spectrogram"] for batch in batches])[np.argsort(order)])
    assert seen[0].shape == (7, 19, 40)
    np.testing.assert_array_equal(seen[0], seen[1])
    assert dataset.element_spec["spectrogram"].shape == [7, 19, 40]


@pytest.mark.slow
def test_sound_files_of_different_length(tmp_path: Path) -> None:
    for number, clip in enumerate(CLIPS):
        scipy.io.wavfile.write(tmp_path / f"{number}.wav", 22050, clip)
    p = Pipeline(sources.audio(f"{tmp_path}/*.wav")).map(audio.resample(22050, 16000)).map(LOG_MEL)
    (ragged,) = p.batch(7).dataset(epochs=1)
    (padded,) = p.batch(7, padded=True).dataset(epochs=1)
    for row, filled, clip in zip(ragged["spectrogram"], padded["spectrogram"], CLIPS, strict=True):
        expected = LOG_MEL(audio.resample(22050, 16000)({"waveform": tf.constant(clip)}))["spectrogram"]
        np.testing.assert_array_equal(row, expected)
        np.testing.assert_array_equal(filled[: len(expected)], expected)
        assert not filled[len(expected) :].numpy().any()


# ---- resample


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(44100, 16000), (48000, 16000), (16000, 8000), (8000, 16000), (3, 7), (16000, 44100), (5, 5)]
)
def test_resample_is_scipys_in_float64(from_hz: int, to_hz: int) -> None:
    common = np.gcd(from_hz, to_hz)
    for clip in (CHIRP[:5003], CLIPS[1], CLIPS[3], np.ones(50, np.float32)):
        expected = scipy.signal.resample_poly(clip.astype(np.float64), to_hz // common, from_hz // common)
        exact = of(audio.resample(from_hz, to_hz), clip.astype(np.float64))
        np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-13)
        result = of(audio.resample(from_hz, to_hz), clip)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


def test_resample_has_the_quality_that_it_promises() -> None:
    # Down to a third: the lower Nyquist frequency is 1/3 of the upper one.
    time = np.arange(9000)

    def level_db(share: float) -> float:
        tone = np.sin(np.pi / 3 * share * time)
        inner = of(audio.resample(3, 1), tone)[300:-300]
        return float(10 * np.log10(2 * np.mean(inner**2)))

    for share in (0.1, 0.5, 0.8, 0.85):
        assert abs(level_db(share)) < 0.1
    for share in (1.2, 1.5, 2.2, 2.9):
        assert level_db(share) < -55


def test_resample_tells_the_new_rate() -> None:
    rows = audio.resample(8000, 16000)({"waveform": tf.zeros([10]), "sample_rate": tf.constant(8000, tf.int64)})
    assert int(rows["sample_rate"]) == 16000
    assert rows["sample_rate"].dtype == tf.int64


# ---- log_mel, mfcc


def reference_log_mel(clip: np.ndarray, scale: str, center: bool, mels: int, window: int, hop: int) -> np.ndarray:
    """librosa's conventions, frame by frame and triangle by triangle, in float64."""
    fft, rate = 512, 16000
    clip = np.pad(clip.astype(np.float64), fft // 2 if center else 0)
    hann = np.zeros(fft)
    hann[(fft - window) // 2 :][:window] = scipy.signal.get_window("hann", window)
    power = np.array(
        [np.abs(np.fft.rfft(clip[t : t + fft] * hann)) ** 2 for t in range(0, len(clip) - fft + 1, hop)]
    ).reshape(-1, fft // 2 + 1)
    corners = mel_frequencies(mels + 2, 0, rate / 2, scale)
    bins = np.arange(fft // 2 + 1) * rate / fft
    columns = []
    for low, peak, high in zip(corners, corners[1:], corners[2:], strict=False):
        triangle = np.interp(bins, [low, peak, high], [0, 1, 0])
        columns.append(power @ triangle * (2 / (high - low) if scale == "slaney" else 1))
    decibel = 10 * np.log10(np.maximum(np.array(columns).T, 1e-10))
    return np.maximum(decibel, decibel.max() - 80) if decibel.size else decibel


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("center", [True, False])
def test_log_mel_against_float64(scale: str, center: bool) -> None:
    stage = audio.log_mel(16000, mels=40, window_length=400, hop_length=160, scale=scale, center=center)
    for clip in (CHIRP, CLIPS[0], CLIPS[5], np.zeros(600, np.float32)):
        expected = reference_log_mel(clip, scale, center, 40, 400, 160)
        assert expected.shape[0] == 1 + (len(clip) // 160 if center else (len(clip) - 512) // 160)
        result = of(stage, clip)
        assert result.dtype == np.float32
        # The chirp's spectrum spans 80 dB: the quietest values carry the rounding errors of the loudest.
        np.testing.assert_allclose(result, expected, rtol=0, atol=0.02)
        np.testing.assert_allclose(of(stage, clip.astype(np.float64)), expected, rtol=0, atol=1e-6)
    assert of(stage, CLIPS[1]).shape == (1 if center else 0, 40)


def test_mel_frequencies_are_those_that_librosa_documents() -> None:
    # librosa.mel_frequencies(n_mels=40), from its documentation.
    slaney = mel_frequencies(40, 0, 11025, "slaney")
    documented = {1: 85.317, 5: 426.586, 11: 938.49, 12: 1024.856, 20: 2071.84, 30: 4994.285, 38: 10096.408, 39: 11025}
    for number, hz in documented.items():
        assert slaney[number] == pytest.approx(hz, abs=1e-3)
    # HTK Book: 1000 Hz are 1000 mel.
    assert mel_frequencies(3, 0, 700 * (10 ** (2000 / 2595) - 1), "htk")[1] == pytest.approx(1000, abs=0.1)


def test_a_tone_lies_in_its_mel_and_the_dynamic_range_is_kept() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    for scale in ("slaney", "htk"):
        result = of(audio.log_mel(16000, mels=40, scale=scale, dynamic_range_db=30), tone)
        nearest = np.argmin(np.abs(mel_frequencies(42, 0, 8000, scale)[1:-1] - 1000))
        assert (result[5:-5].argmax(axis=1) == nearest).all()
        assert result.max() - result.min() == pytest.approx(30, abs=1e-4)


def test_mfcc_is_the_orthonormal_dct() -> None:
    spectrogram = of(LOG_MEL, CHIRP)
    for count in (1, 13, 40):
        expected = scipy.fft.dct(spectrogram.astype(np.float64), norm="ortho")[:, :count]
        np.testing.assert_allclose(of(audio.mfcc(count), spectrogram), expected, rtol=0, atol=2e-4)
        np.testing.assert_allclose(of(audio.mfcc(count), spectrogram.astype(np.float64)), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stage", [audio.resample(44100, 16000), LOG_MEL])
def test_compiled_by_xla(stage: Any) -> None:
    rows = {"waveform": tf.stack([CHIRP[:5000], CHIRP[5000:10000]])}
    (compiled,) = tf.function(stage.over_rows, jit_compile=True, autograph=False)(rows).values()
    (eager,) = stage.over_rows(rows).values()
    np.testing.assert_allclose(compiled, eager, rtol=0, atol=0.02 if stage is LOG_MEL else 1e-5)


# ---- spec_augment


def test_spec_augment_masks_bands_and_stretches() -> None:
    spectrogram = RNG.normal(size=(60, 20)).astype(np.float32)
    stage = audio.spec_augment(frequency_masks=1, max_mels=5, time_masks=1, max_frames=9)
    for number in range(30):
        result = of(stage, spectrogram, keys_for(30)[number])
        masked = result == spectrogram.min()
        np.testing.assert_array_equal(result[~masked], spectrogram[~masked])
        rows, columns = masked.all(axis=1), masked.all(axis=0)
        assert rows.sum() <= 9
        assert columns.sum() <= 5
        for line in (rows, columns):
            assert np.abs(np.diff(np.pad(line.astype(int), 1))).sum() in (0, 2)  # in one piece
        rest = masked[~rows][:, ~columns]
        assert rest.sum() <= 1  # the minimum itself


def test_spec_augment_draws_evenly() -> None:
    count, frames, mels = 6000, 12, 8
    spectrograms = np.arange(frames * mels, dtype=np.float32).reshape(1, frames, mels).repeat(count, axis=0) + 1
    stage = audio.spec_augment(frequency_masks=0, time_masks=1, max_frames=4)
    result = stage.over_rows({"spectrogram": tf.constant(spectrograms)}, keys_for(count))["spectrogram"].numpy()
    masked = (result[:, :, 1:] == 1).all(axis=2)
    widths = masked.sum(axis=1)
    expected = count / 5
    assert (np.abs(np.bincount(widths) - expected) < 5 * np.sqrt(expected)).all()
    for width in (1, 2, 3, 4):
        places = np.bincount(masked[widths == width].argmax(axis=1), minlength=frames - width + 1)
        assert len(places) == frames - width + 1
        expected = (widths == width).sum() / len(places)
        assert (np.abs(places - expected) < 5 * np.sqrt(expected)).all()


def test_spec_augment_keeps_to_its_share_and_to_short_clips() -> None:
    lengths = (1, 10, 25)
    clips = tf.RaggedTensor.from_row_lengths(tf.random.stateless_uniform([36, 3], [0, 0]), lengths)
    stage = audio.spec_augment(frequency_masks=0, time_masks=1, max_frames=100, max_share=0.2)
    most = [0, 0, 0]
    for seed in range(40):
        result = stage.over_rows({"spectrogram": clips}, keys_for(3, seed))["spectrogram"]
        for number, (row, clip) in enumerate(zip(result, clips, strict=True)):
            most[number] = max(most[number], int((row.numpy() != clip.numpy()).any(axis=1).sum()))
    assert most == [0, 2, 5]
    everything = audio.spec_augment(frequency_masks=5, max_mels=1000, time_masks=5, max_frames=1000)
    assert of(everything, np.ones((4, 3), np.float32), keys_for(1)[0]).shape == (4, 3)


# ---- mix_noise


@pytest.mark.parametrize("snr_db", [(0, 0), (10, 10), (-5, -5)])
def test_mix_noise_has_the_ratio(snr_db: tuple[float, float]) -> None:
    stage = audio.mix_noise(NOISES, snr_db)
    for number, clip in enumerate(CLIPS):
        result = of(stage, clip, keys_for(7)[number])
        assert result.dtype == np.float32
        if len(clip) > 1:
            added = result.astype(np.float64) - clip
            ratio = 10 * np.log10(np.sum(clip.astype(np.float64) ** 2) / np.sum(added**2))
            assert ratio == pytest.approx(snr_db[0], abs=0.001)


def test_mix_noise_adds_a_part_of_a_noise() -> None:
    clip = CLIPS[3]
    result = of(audio.mix_noise(NOISES, (0, 0)), clip, keys_for(1)[0])
    added = (result - clip) / np.linalg.norm(result - clip)
    parts = [np.resize(np.roll(noise, -start), len(clip)) for noise in NOISES for start in range(len(noise))]
    best = max(float(part @ added / np.linalg.norm(part)) for part in parts)
    assert best == pytest.approx(1, abs=1e-5)


def test_mix_noise_draws_evenly() -> None:
    # Of the clip's ten samples, the first noise changes one and the second all.
    count = 4000
    clips = np.ones([count, 10], np.float32)
    noises = [np.eye(10, dtype=np.float32)[0], np.ones(3, np.float32)]
    stage = audio.mix_noise(noises, (0, 20))
    added = stage.over_rows({"waveform": tf.constant(clips)}, keys_for(count))["waveform"].numpy() - 1
    pulses = (added > 1e-6).sum(axis=1) == 1
    assert abs(pulses.sum() - count / 2) < 5 * np.sqrt(count / 4)
    places = np.bincount(added[pulses].argmax(axis=1), minlength=10)
    assert (np.abs(places - pulses.sum() / 10) < 5 * np.sqrt(pulses.sum() / 10)).all()
    snr = 10 * np.log10(10 / np.sum(added.astype(np.float64) ** 2, axis=1))
    assert snr.min() > -0.01
    assert snr.max() < 20.01
    histogram, _ = np.histogram(snr, 10, (0, 20))
    assert (np.abs(histogram - count / 10) < 5 * np.sqrt(count / 10)).all()


def test_silence_stays_finite() -> None:
    silent = np.zeros(50, np.float32)
    np.testing.assert_array_equal(of(audio.mix_noise(NOISES, (0, 20)), silent, keys_for(1)[0]), silent)
    np.testing.assert_array_equal(of(audio.mix_noise([silent], (0, 20)), CLIPS[3], keys_for(1)[0]), CLIPS[3])
    assert (of(LOG_MEL, silent) == -100).all()


def test_names_carry_the_parameters() -> None:
    stages = [
        audio.mix_noise(NOISES, (0, 20)),
        audio.mix_noise(NOISES[:1], (0, 20)),
        audio.mix_noise(NOISES[1:], (0, 20)),
        audio.mix_noise(NOISES, (1, 20)),
        audio.resample(2, 1),
        audio.resample(3, 1),
        audio.log_mel(16000),
        audio.log_mel(16000, scale="htk"),
        audio.log_mel(16000, center=False),
        audio.log_mel(16000, low_hz=20),
        audio.mfcc(12),
        audio.mfcc(13),
        audio.spec_augment(),
        audio.spec_augment(max_share=0.5),
    ]
    assert len({stage.__name__ for stage in stages}) == len(stages)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: audio.resample(0, 8000), ValueError, "from_hz=0: must be at least 1"),
        (lambda: audio.resample(44100, 8e3), TypeError, "to_hz: expected an integer, got 8000.0"),
        (lambda: audio.log_mel(16000, scale="bark"), ValueError, "scale='bark': expected 'slaney' or 'htk'"),
        (lambda: audio.log_mel(16000, window_length=600), ValueError, "window_length=600: must be at most"),
        (lambda: audio.log_mel(16000, high_hz=9000), ValueError, "high_hz=9000"),
        (lambda: audio.log_mel(16000, mels=400), ValueError, "mels=400: no bin of the DFT lies under triangle"),
        (lambda: audio.log_mel(16000, dynamic_range_db=0), ValueError, "dynamic_range_db=0"),
        (lambda: audio.mfcc(0), ValueError, "coefficients=0"),
        (lambda: of(audio.mfcc(41), of(LOG_MEL, CHIRP)), ValueError, "coefficients=41, but .* only 40 mels"),
        (lambda: audio.spec_augment(max_share=1.5), ValueError, "max_share=1.5"),
        (lambda: audio.spec_augment(time_masks=-1), ValueError, "time_masks=-1"),
        (lambda: audio.mix_noise([], (0, 1)), ValueError, "noises: expected at least one array"),
        (lambda: audio.mix_noise([[np.nan]], (0, 1)), ValueError, "noises: .*finite"),
        (lambda: audio.mix_noise(NOISES, 10), TypeError, "snr_db: expected .lowest, highest. in dB, got 10"),
        (lambda: audio.mix_noise(NOISES, (3, 1)), ValueError, "expected .lowest, highest. in dB"),
        (lambda: of(audio.resample(2, 1), np.zeros([5, 2])), ValueError, "average the channels first"),
        (lambda: of(audio.resample(2, 1), np.zeros(5, np.int16)), ValueError, "floating point, got int16; scale it"),
        (lambda: of(audio.mfcc(2), CHIRP), ValueError, r"mfcc: 'spectrogram' must have shape \[frames, mels\]"),
        (lambda: LOG_MEL({"wave": tf.zeros([9])}), ValueError, r"no feature 'waveform', only \['wave'\]"),
    ],
)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
