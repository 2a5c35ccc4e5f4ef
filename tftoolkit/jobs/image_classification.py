"""Trains an image classifier on a TFDS data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.job import Job
from tftoolkit.trainers.console import phase
from tftoolkit.trainers.naming import keras_generation


class Classifier(trainers.Step):
    """Cross-entropy on the features "image" and "label"; a subclass may get its logits from others."""

    def __init__(self, model: Any, update: trainers.Update) -> None:
        super().__init__()
        self.model = model
        self.update = update

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        def losses(batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> trainers.Losses:
            labels = batch["label"]
            logits = self.logits(batch, key)
            correct = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            return trainers.Losses(values, metrics={"accuracy": tf.cast(correct, tf.float32)})

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)

    def logits(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> tf.Tensor:
        """[batch, classes], as in training."""
        return logits_of(self.model, batch["image"], key)


def logits_of(model: Any, images: tf.Tensor, key: tf.Tensor | None = None) -> tf.Tensor:
    """Of a model that knows ``training``, or one that takes the key of its dropout; without a key as after training."""
    knows_training = keras_generation(model) or isinstance(model, models.ResNet)
    return model(images, training=key is not None) if knows_training else model(images, key)


class ImageClassification(Job):
    """Settings: ``dataset``, ``max_pixel``, ``image_size`` (None leaves the pictures as they are), ``random_shift``,
    ``model`` (a name of ``tftoolkit.models``, and its arguments), and those of optimizer and export."""

    charts = ("loss", "accuracy")

    def read(self) -> None:
        batches = self._examples("test").batch(256).dataset(epochs=1)
        parts = list(batches.as_numpy_iterator())
        self.test = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "label")}

    def _examples(self, split: str) -> pipelines.Pipeline:
        config = self.config
        source = pipelines.sources.tfds(config.dataset, split=split)
        examples = pipelines.Pipeline(source, seed=config.seed)
        if split == "train":
            examples = examples.shuffle()
        examples = examples.map(pipelines.image.normalize(config.max_pixel))
        if config.image_size is None:
            return examples
        return examples.map(pipelines.image.resize(config.image_size, config.image_size))

    def pipeline(self) -> pipelines.Pipeline:
        config = self.config
        augmented = self._examples("train").map(pipelines.image.random_shift(config.random_shift))
        return augmented.batch(config.batch_size, drop_remainder=True)

    def step(self) -> trainers.Step:
        config = self.config
        options = config.model.to_dict()
        make = getattr(models, options.pop("name"))
        if config.image_size is not None and "image_size" in inspect.signature(make).parameters:
            options.setdefault("image_size", config.image_size)
        self.model = make(**options, seed=config.seed)
        return Classifier(self.model, trainers.Update(self.model, self.optimizer(), clip_norm=config.clip_norm))

    def evaluate(self) -> dict[str, float]:
        logits = self._predict()
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(self.test["label"], logits)
        correct = np.argmax(logits, axis=-1) == self.test["label"]
        return {"loss": float(tf.reduce_mean(losses)), "accuracy": float(np.mean(correct))}

    def _predict(self) -> np.ndarray:
        """Logits of the test images."""
        predicted: np.ndarray = self._forward(self.test["image"]).numpy()
        return predicted

    @tf.function(reduce_retracing=True)
    def _forward(self, images: tf.Tensor) -> tf.Tensor:
        return logits_of(self.model, images)

    def export(self, folder: Path) -> export.ExportReport:
        config = self.config
        with phase(f"{config.dataset}: reading examples for calibration"):
            calibration = list(self._calibration())
        image = tf.TensorSpec([None, *self.test["image"].shape[1:]], tf.float32, "image")
        return export_all(
            self.model,
            folder,
            config.exports,
            signatures={"serving_default": (lambda image: {"logits": logits_of(self.model, image)}, [image])},
            representative=calibration,
            metric=self._accuracy,
            max_drop=config.max_drop,
        )

    def _calibration(self) -> Iterator[dict[str, np.ndarray]]:
        images = self._examples("train").batch(1).dataset()
        for batch in images.take(self.config.calibration_examples).as_numpy_iterator():
            yield {"image": batch["image"]}

    def _accuracy(self, predict: Callable[..., dict[str, np.ndarray]]) -> float:
        found = np.argmax(predict({"image": self.test["image"]})["logits"], axis=-1)
        return float(np.mean(found == self.test["label"]))

    def sections(self) -> Sequence[report.Section]:
        found = np.argmax(self._predict(), axis=-1)
        return [report.classified("Test images", self.test["image"], self.test["label"], found)]


JOB = ImageClassification
