"""Trains a detector on scenes of scattered digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs.average_precision import Boxes, mean_average_precision
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.job import Job
from tftoolkit.jobs.scattering import enlarged

_SHOWN = 12


class DetectionStep(trainers.Step):
    """The detector's losses on the features "image", "boxes" and "labels"."""

    def __init__(self, model: models.HeatMapDetector, update: trainers.Update) -> None:
        super().__init__()
        self.model = model
        self.update = update

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        def losses(batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> trainers.Losses:
            heat, boxes = self.model(batch["image"])
            return trainers.Losses(models.detection_losses(heat, boxes, batch["boxes"], batch["labels"]))

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def scenes(
    images: np.ndarray, labels: np.ndarray, count: int, size: int, most: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Digits of 12 to 28 pixels, 1 to ``most`` of them in a picture, on noise; no two overlap by more than a fifth.

    Args:
      images, labels: float32 [n, height, width] from 0 to 1, and integers [n].

    Returns:
      "image" uint8 [count, size, size, 1]; "boxes" float32 [count, most, 4], x1, y1, x2, y2 of the ink in pixels;
      "labels" int32 [count, most], -1 where there is nothing more.
    """
    pictures = rng.integers(0, 60, [count, size, size]).astype(np.float32)
    boxes, found = np.zeros([count, most, 4], np.float32), np.full([count, most], -1, np.int32)
    for picture, its_boxes, its_labels in zip(pictures, boxes, found, strict=True):
        there = 0
        for _ in range(rng.integers(1, most + 1)):
            which, side = rng.integers(len(images)), int(rng.integers(12, 29))
            x, y = rng.integers(0, size - side + 1, 2)
            ink = enlarged(images[which], side)
            rows, columns = (np.flatnonzero(ink.max(axis) > 0.2) for axis in (1, 0))
            box = np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], np.float32)
            if there and _covered(box, its_boxes[:there]) > 0.2:
                continue
            place = picture[y : y + side, x : x + side]
            np.maximum(place, 255 * ink, out=place)
            its_boxes[there], its_labels[there] = box, labels[which]
            there += 1
    return {"image": np.round(pictures).astype(np.uint8)[..., np.newaxis], "boxes": boxes, "labels": found}


def _covered(box: np.ndarray, others: np.ndarray) -> float:
    """The largest part of the box, or of another, that they share."""
    shared = np.prod(np.maximum(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0), axis=1)
    smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1))
    return float(np.max(shared / smaller))


class Detection(Job):
    """Settings: ``dataset``, ``max_pixel``, ``scene_size``, ``most`` (digits in a scene), ``train_scenes``,
    ``test_scenes``, ``model`` (arguments of ``models.HeatMapDetector``), and those of optimizer and export.

    The exported files give the detector's "heat" and "boxes", from which ``models.detections`` takes what it sees.
    """

    charts = ("loss", "map_50")

    def read(self) -> None:
        config = self.config
        self.train, self.test = (
            self._scenes(split, count, number)
            for number, (split, count) in enumerate((("train", config.train_scenes), ("test", config.test_scenes)))
        )
        self.truth = [
            Boxes(boxes[labels >= 0], labels[labels >= 0])
            for boxes, labels in zip(self.test["boxes"], self.test["labels"], strict=True)
        ]

    def _scenes(self, split: str, count: int, number: int) -> dict[str, np.ndarray]:
        config = self.config
        source = pipelines.Pipeline(pipelines.sources.tfds(config.dataset, split=split))
        parts = list(source.batch(256).dataset(epochs=1).as_numpy_iterator())
        images, labels = (np.concatenate([part[name] for part in parts]) for name in ("image", "label"))
        digits = images[..., 0].astype(np.float32) / np.float32(config.max_pixel)
        return scenes(digits, labels, count, config.scene_size, config.most, np.random.default_rng(number))

    def pipeline(self) -> pipelines.Pipeline:
        examples = pipelines.Pipeline(pipelines.sources.arrays(self.train), seed=self.config.seed).shuffle()
        return examples.map(pipelines.image.normalize(255.0)).batch(self.config.batch_size, drop_remainder=True)

    def step(self) -> DetectionStep:
        config = self.config
        classes = int(self.train["labels"].max()) + 1
        self.model = models.HeatMapDetector(classes, **config.model.to_dict(), seed=config.seed)
        return DetectionStep(self.model, trainers.Update(self.model, self.optimizer(), clip_norm=config.clip_norm))

    def evaluate(self) -> dict[str, float]:
        return {"map_50": mean_average_precision(self.truth, self._found(self._predict))}

    def _predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self._forward(inputs["image"]).items()}

    @tf.function(reduce_retracing=True)
    def _forward(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(("heat", "boxes"), self.model(image), strict=True))

    def _found(self, predict: Callable[..., dict[str, np.ndarray]]) -> list[Boxes]:
        """What is seen in the test scenes by a function from "image" to "heat" and "boxes"."""
        found = []
        images = self.test["image"].astype(np.float32) / 255
        for start in range(0, len(images), 50):
            outputs = predict({"image": images[start : start + 50]})
            seen = models.detections(tf.constant(outputs["heat"]), tf.constant(outputs["boxes"]))
            found += [
                Boxes(boxes[labels >= 0], labels[labels >= 0], scores[labels >= 0])
                for boxes, labels, scores in zip(*(part.numpy() for part in seen), strict=True)
            ]
        return found

    def export(self, folder: Path) -> export.ExportReport:
        size = self.config.scene_size
        spec = tf.TensorSpec([None, size, size, 1], tf.float32, "image")
        calibration = (self.train["image"][:200].astype(np.float32) / 255)[:, np.newaxis]
        return export_all(
            self.model,
            folder,
            self.config.exports,
            signatures={"serving_default": (self._forward.python_function, [spec])},
            representative=[{"image": image} for image in calibration],
            metric=lambda predict: mean_average_precision(self.truth, self._found(predict)),
            max_drop=self.config.max_drop,
        )

    def sections(self) -> Sequence[report.Section]:
        found = self._found(self._predict)[:_SHOWN]
        note = "The first test scenes, with what was found (score of 0.3 or more), and dotted what is there."
        charts = [
            _drawn(image, real, seen) for image, real, seen in zip(self.test["image"], self.truth, found, strict=False)
        ]
        return [report.Section("Test scenes", note, charts=charts)]


def _drawn(image: np.ndarray, real: Boxes, seen: Boxes) -> str:
    figure = Figure(figsize=(2.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(255 - image[..., 0], cmap="gray", vmin=0, vmax=255, extent=(0, image.shape[1], image.shape[0], 0))
    axes.set_axis_off()
    for x1, y1, x2, y2 in real.boxes:
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="#2e7d32", linestyle=":"))
    assert seen.scores is not None
    for (x1, y1, x2, y2), label, score in zip(seen.boxes, seen.labels, seen.scores, strict=True):
        if score >= 0.3:
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="#c62828"))
            axes.text(x1, y1, f"{label} {score:.0%}", fontsize=7, color="#c62828", va="bottom")
    return report.svg(figure)


JOB = Detection
