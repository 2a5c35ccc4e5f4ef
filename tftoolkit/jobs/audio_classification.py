"""Trains a classifier of spoken words on spectrograms, and exports it with the spectrogram in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.image_classification import Classifier
from tftoolkit.jobs.job import Job
from tftoolkit.pipelines.datasets import spoken_words

_SHOWN = 8


class SpectrogramStep(Classifier):
    """Cross-entropy on the features "spectrogram" and "label"."""

    def logits(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> tf.Tensor:
        return self.model(batch["spectrogram"], key)


class AudioClassification(Job):
    """Settings: ``mels``, ``fft_length``, ``hop_length``, ``noise_db`` (from, to), ``masks`` (arguments of
    ``pipelines.audio.spec_augment``), ``model`` (arguments of ``models.SpectrogramClassifier``), and those of optimizer
    and export.

    The words are those of espeak-ng; where that is missing, melodies take their place, which is said. A run goes on
    with what it was begun on: the file ``melodies`` in its folder says that it is these.
    """

    charts = ("loss", "accuracy")

    def read(self) -> None:
        data_dir = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        tones = self._takes_melodies(data_dir)
        self.folder = spoken_words.prepare(data_dir, tones=tones)
        self.words: Sequence[str] = spoken_words.MELODIES if tones else spoken_words.WORDS
        clips = self._clips("test").batch(128).dataset(epochs=1)
        parts = list(clips.as_numpy_iterator())
        self.test = {name: np.concatenate([part[name] for part in parts]) for name in ("waveform", "label")}

    def _takes_melodies(self, data_dir: Path) -> bool:
        mark = self.directory / "melodies"
        if mark.exists():
            print("Melodies of three tones, on which this run was begun; name another folder (--directory) for words")
            return True
        try:
            spoken_words.prepare(data_dir)
        except spoken_words.MissingVoicesError as error:
            if (self.directory / "checkpoints").exists():
                raise spoken_words.MissingVoicesError(
                    f"the run in {self.directory} was begun on words. They are not in {data_dir}, and {error}: "
                    "install it, or begin a run on melodies in another folder (--directory)"
                ) from error
            print(f"Melodies of three tones in place of words, since {error}")
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text("This run was begun on melodies, since there were no words.\n")
            return True
        return False

    def _clips(self, split: str) -> pipelines.Pipeline:
        # Every clip is a second long, and said to be, so that batches have a fixed shape.
        source = pipelines.sources.audio(self.folder / split, frames=spoken_words.SAMPLES)
        return pipelines.Pipeline(source, seed=self.config.seed)

    def pipeline(self) -> pipelines.Pipeline:
        config = self.config
        rng = np.random.default_rng(0)
        noises = [np.cumsum(rng.standard_normal(4 * spoken_words.SAMPLES)) * 0.01, rng.standard_normal(32_000)]
        to_mel = pipelines.audio.log_mel(
            spoken_words.SAMPLE_RATE, mels=config.mels, fft_length=config.fft_length, hop_length=config.hop_length
        )
        return (
            self._clips("train")
            .shuffle()
            .map(pipelines.audio.mix_noise([noise - noise.mean() for noise in noises], snr_db=tuple(config.noise_db)))
            .map(to_mel)
            .map(pipelines.audio.spec_augment(**config.masks.to_dict()))
            .batch(config.batch_size, drop_remainder=True)
        )

    def step(self) -> SpectrogramStep:
        config = self.config
        self.model = models.SpectrogramClassifier(
            config.mels, len(self.words), **config.model.to_dict(), seed=config.seed
        )
        self.front = models.LogMel(
            spoken_words.SAMPLE_RATE, mels=config.mels, fft_length=config.fft_length, hop_length=config.hop_length
        )
        return SpectrogramStep(self.model, trainers.Update(self.model, self.optimizer(), clip_norm=config.clip_norm))

    def _classify(self, waveform: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the exported files compute."""
        return {"logits": self.model(self.front(waveform))}

    @tf.function(reduce_retracing=True)
    def _forward(self, waveform: tf.Tensor) -> tf.Tensor:
        return self._classify(waveform)["logits"]

    def evaluate(self) -> dict[str, float]:
        logits = self._forward(self.test["waveform"])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self.test["label"], logits)
        return {"loss": float(tf.reduce_mean(losses)), "accuracy": self._accuracy(logits.numpy())}

    def _accuracy(self, logits: np.ndarray) -> float:
        return float(np.mean(np.argmax(logits, axis=-1) == self.test["label"]))

    def export(self, folder: Path) -> export.ExportReport:
        def metric(predict: Callable[..., dict[str, np.ndarray]]) -> float:
            return self._accuracy(predict({"waveform": self.test["waveform"]})["logits"])

        spec = tf.TensorSpec([None, spoken_words.SAMPLES], tf.float32, "waveform")
        return export_all(
            self.model,
            folder,
            self.config.exports,
            signatures={"serving_default": (self._classify, [spec])},
            representative=[{"waveform": clip[np.newaxis]} for clip in self.test["waveform"][:100]],
            metric=metric,
            max_drop=self.config.max_drop,
        )

    def sections(self) -> Sequence[report.Section]:
        found = np.argmax(self._forward(self.test["waveform"]), axis=-1)
        wrong = np.flatnonzero(found != self.test["label"])
        right = np.flatnonzero(found == self.test["label"])
        shown = [*wrong, *right[:: max(1, len(right) // _SHOWN)]][:_SHOWN]
        spectrograms = self.front(tf.constant(self.test["waveform"][shown])).numpy()
        charts = [
            self._drawn(spectrogram, int(self.test["label"][i]), int(found[i]))
            for spectrogram, i in zip(spectrograms, shown, strict=True)
        ]
        note = f"{len(wrong)} of {len(found)} clips of unheard voices are taken for another word; these come first."
        return [report.Section("Test clips", note, charts=charts)]

    def _drawn(self, spectrogram: np.ndarray, label: int, found: int) -> str:
        figure = Figure(figsize=(2.6, 2.2), layout="constrained")
        axes = figure.subplots()
        axes.imshow(spectrogram.T, origin="lower", aspect="auto", cmap="magma")
        axes.set_axis_off()
        title = self.words[label] if label == found else f"{self.words[label]}, taken for {self.words[found]}"
        axes.set_title(title, fontsize=9, color="black" if label == found else "#a31515")
        return report.svg(figure)


JOB = AudioClassification
