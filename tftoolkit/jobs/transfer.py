"""Trains a ResNet on five classes, and brings it to five others of which there are few examples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import models, pipelines, report, trainers
from tftoolkit.jobs import run_folder, settings
from tftoolkit.jobs.image_classification import Classifier, ImageClassification
from tftoolkit.jobs.scattering import scattered

Arrays = dict[str, np.ndarray]


class ResNetStep(Classifier):
    """Cross-entropy of a ResNet on the features "image" and "label".

    Args:
      noted: whether the norms take the batch's moments, and note them, as from scratch; few examples know them badly.
    """

    def __init__(self, model: models.ResNet, update: trainers.Update, *, noted: bool) -> None:
        super().__init__(model, update)
        self._noted = noted

    def logits(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> tf.Tensor:
        return self.model(batch["image"], training=self._noted)


class Transfer(ImageClassification):
    """Settings: those of image classification, and ``classes``, ``shots`` (pictures of each new class), ``sides`` (from
    and to how many pixels of a picture a digit takes), ``frozen`` and ``rate_factors`` (patterns of weights),
    ``pretraining`` and ``scratch`` (their steps and learning rates).

    The run folder holds them, too, each with its own checkpoints: ``pretraining/``, whose weights go on as
    ``pretrained.safetensors`` under PyTorch's names, and ``scratch/``, the same few examples without them.
    """

    def check(self) -> None:
        super().check()
        for name, least in (("classes", 2), ("shots", 1)):
            settings.between(self.config, name, least)
        for name in ("pretraining", "scratch"):
            settings.between(self.config, f"{name}.steps", 1)
            settings.between(self.config, f"{name}.learning_rate", 0)

    def read(self) -> None:
        config = self.config
        old, new = (range(first, first + config.classes) for first in (0, config.classes))
        self.few = self._pictures("train", new, config.shots)
        self.test = self._pictures("test", new)
        self._old = old

    def prepare(self) -> None:
        config = self.config
        self.weights = self.directory / "pretrained.safetensors"
        self.names = models.torch_names(config.model.name)
        if not self.weights.exists():
            model = self._trained("pretraining", self._pictures("train", self._old, turned=True), config.pretraining)
            trainers.save_weights(model, self.weights, names=self.names)
        else:  # damaged ones are refused here, before anything is trained
            self._load(self._model(config.classes))
        results = self.directory / "scratch.json"
        if not results.exists():
            model = self._trained("scratch", self.few, config.scratch)
            run_folder.write_text(results, json.dumps({"accuracy": self._right(model)}))
        self.scratch_accuracy: float = json.loads(results.read_text())["accuracy"]

    def _load(self, model: models.ResNet) -> trainers.LoadReport:
        return trainers.load_weights(model, self.weights, names=self.names, partial=True)

    def _pictures(self, split: str, classes: range, each: int | None = None, turned: bool = False) -> Arrays:
        """The first ``each`` digits (None: all) of every class, which are called 0, 1, …, scattered.

        Turned, and seen in a mirror, a digit is another thing: with ``turned`` there are eight times as many classes
        (Santoro et al. 2016, https://arxiv.org/abs/1605.06065), of which more is learned than of the digits alone.
        """
        config = self.config
        parts = list(self._examples(split).batch(256).dataset(epochs=1).as_numpy_iterator())
        images, labels = (np.concatenate([part[name] for part in parts]) for name in ("image", "label"))
        if missing := sorted(set(classes) - set(labels.tolist())):
            there = f"{config.dataset} has no class {missing[0]}"
            raise ValueError(f"config.classes={config.classes}: twice as many are needed, and {there}")
        forms = [(turns, mirror) for turns in range(4) for mirror in (1, -1)] if turned else [(0, 1)]
        found = [
            np.rot90(images[labels == label][:each], turns, axes=(1, 2))[:, :, ::mirror]
            for label, (turns, mirror) in itertools.product(classes, forms)
        ]
        numbers = [np.full(len(part), number) for number, part in enumerate(found)]
        rng = np.random.default_rng(config.seed)
        pictures = scattered(np.concatenate(found), config.picture_size, config.sides, rng)
        return {"image": pictures, "label": np.concatenate(numbers)}

    def _trained(self, name: str, data: Arrays, how: ConfigDict) -> models.ResNet:
        """Trained from random weights on, in a folder of its own."""
        model = self._model(int(data["label"].max()) + 1)
        schedule = trainers.schedules.cosine(how.learning_rate, how.steps, warmup_steps=how.steps // 10)
        update = trainers.Update(model, trainers.optimizers.AdamW(schedule, weight_decay=self.config.weight_decay))
        step = ResNetStep(model, update, noted=True)
        trainer = trainers.Trainer(
            step,
            self._augmented(data),
            self.directory / name,
            runner=self.config.runner,
            steps_per_call=20,
            log_every=20,
            seed=self.config.seed,
        )
        trainer.run(how.steps)
        return model

    def _model(self, classes: int) -> models.ResNet:
        options: dict[str, Any] = self.config.model.to_dict()
        make = getattr(models, options.pop("name"))
        model: models.ResNet = make(**options, classes=classes, channels=1, seed=self.config.seed)
        return model

    def _augmented(self, data: Arrays) -> pipelines.Pipeline:
        config = self.config
        examples = pipelines.Pipeline(pipelines.sources.arrays(data), seed=config.seed).shuffle()
        shifted = examples.map(pipelines.image.random_shift(config.random_shift))
        return shifted.batch(min(config.batch_size, len(data["label"])), drop_remainder=True)

    def pipeline(self) -> pipelines.Pipeline:
        return self._augmented(self.few)

    def step(self) -> trainers.Step:
        config = self.config
        self.model = self._model(config.classes)
        print(f"{self.weights.name}: {self._load(self.model)}")
        update = trainers.Update(
            self.model,
            self.optimizer(),
            clip_norm=config.clip_norm,
            frozen=config.frozen,
            learning_rate_factors=dict(config.rate_factors),
        )
        return ResNetStep(self.model, update, noted=False)

    def _calibration(self) -> Iterator[dict[str, np.ndarray]]:
        """Pictures of the new classes, whose names are not looked at: int8 needs more than there are to train on."""
        config = self.config
        images = self._pictures("train", range(config.classes, 2 * config.classes))["image"]
        for image in images[:: max(1, len(images) // config.calibration_examples)]:
            yield {"image": image[np.newaxis]}

    def _right(self, model: models.ResNet) -> float:
        logits = tf.function(model)(tf.constant(self.test["image"]))
        return float(np.mean(np.argmax(logits, axis=-1) == self.test["label"]))

    def evaluate(self) -> dict[str, float]:
        results = super().evaluate()
        scratch = self.scratch_accuracy
        return {**results, "scratch_accuracy": scratch, "accuracy_gain": results["accuracy"] - scratch}

    def sections(self) -> Sequence[report.Section]:
        first = self.config.classes
        found = np.argmax(self._predict(), axis=-1)
        return [report.classified("Test images", self.test["image"], self.test["label"] + first, found + first)]


JOB = Transfer
