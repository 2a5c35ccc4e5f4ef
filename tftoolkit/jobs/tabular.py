"""Trains a network on a table that scikit-learn carries: classes, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import sklearn.datasets
import tensorflow as tf
from matplotlib.figure import Figure
from sklearn.model_selection import train_test_split

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs import settings
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.job import Job

Arrays = dict[str, np.ndarray]
TABLES = ("breast_cancer", "diabetes", "digits", "iris", "wine")  # of scikit-learn's, those with one target


class TabularStep(trainers.Step):
    """Cross-entropy in which each class counts the same, or the squared error of a standardised target."""

    def __init__(self, model: models.TabularNetwork, update: trainers.Update, class_weights: np.ndarray | None) -> None:
        super().__init__()
        self.model = model
        self.update = update
        self._class_weights = class_weights

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        def losses(batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> trainers.Losses:
            outputs, target = self.model(batch["numbers"], batch["categories"], key), batch["target"]
            if self._class_weights is None:
                return trainers.Losses((outputs[:, 0] - target) ** 2)
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(target, outputs)
            return trainers.Losses(values, tf.gather(tf.constant(self._class_weights, tf.float32), target))

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


class Tabular(Job):
    """Settings: ``dataset`` (scikit-learn's load_NAME), ``categories`` (the columns that hold some), ``test_share``,
    ``model`` (arguments of ``models.TabularNetwork``), and those of optimizer and export.

    The exported files take the table as it is: "numbers" are standardised in them, and a regression's output has the
    target's unit.
    """

    def check(self) -> None:
        super().check()
        settings.one_of("dataset", self.config.dataset, TABLES)

    def read(self) -> None:
        config = self.config
        table = getattr(sklearn.datasets, f"load_{config.dataset}")(**config.load)
        names = list(table.feature_names)
        unknown = sorted(set(config.categories) - set(names))
        if unknown:
            raise ValueError(f"config.categories: {config.dataset} has no columns {unknown}; there are {names}")
        self.is_regression = not hasattr(table, "target_names")
        self.charts = ("loss", "r_squared" if self.is_regression else "accuracy")
        self.classes = [] if self.is_regression else [str(name) for name in table.target_names]
        categories = [names.index(name) for name in config.categories]
        numbers = [i for i in range(len(names)) if i not in categories]
        self.vocabularies = [np.unique(table.data[:, i]) for i in categories]
        found = [
            np.searchsorted(words, table.data[:, i]) for words, i in zip(self.vocabularies, categories, strict=True)
        ]
        rows = {
            "numbers": table.data[:, numbers].astype(np.float32),
            "categories": np.reshape(np.array(found, np.int32).T, [len(table.data), len(categories)]),
            "target": table.target.astype(np.float32 if self.is_regression else np.int32),
        }
        train, test = train_test_split(
            np.arange(len(table.data)),
            test_size=config.test_share,
            random_state=0,
            stratify=None if self.is_regression else table.target,
        )
        self.train: Arrays = {name: column[train] for name, column in rows.items()}
        self.test: Arrays = {name: column[test] for name, column in rows.items()}
        standardized = ["numbers", "target"] if self.is_regression else ["numbers"]
        self.statistics = pipelines.tabular.fit(pipelines.sources.arrays(self.train), standardized)

    def pipeline(self) -> pipelines.Pipeline:
        rows = pipelines.Pipeline(pipelines.sources.arrays(self.train), seed=self.config.seed).shuffle()
        standard = rows.map(pipelines.tabular.standardize(self.statistics))
        return standard.batch(self.config.batch_size, drop_remainder=True)

    def step(self) -> TabularStep:
        config = self.config
        self.model = models.TabularNetwork(
            self.train["numbers"].shape[1],
            [len(words) for words in self.vocabularies],
            max(1, len(self.classes)),
            **config.model.to_dict(),
            seed=config.seed,
        )
        update = trainers.Update(self.model, self.optimizer(), clip_norm=config.clip_norm)
        weights = None
        if not self.is_regression:
            counts = np.bincount(self.train["target"], minlength=len(self.classes))
            weights = len(self.train["target"]) / (len(self.classes) * counts)
        return TabularStep(self.model, update, weights)

    def predict(self, numbers: tf.Tensor, categories: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """What the exported files compute: "logits" or "value" of rows of the table as it is."""
        if categories is None:  # of a table that has none
            categories = tf.zeros([1, 0], tf.int32)
        known = self.statistics.mean, self.statistics.std
        mean, std = (tf.constant(values["numbers"], tf.float32) for values in known)
        outputs = self.model((numbers - mean) / tf.where(std > 0, std, 1.0), categories)
        if not self.is_regression:
            return {"logits": outputs}
        mean, std = (float(values["target"]) for values in known)
        return {"value": outputs[:, 0] * std + mean}

    def evaluate(self) -> dict[str, float]:
        return self._judged(self._predicted())

    def _predicted(self) -> Arrays:
        outputs = self.predict(tf.constant(self.test["numbers"]), tf.constant(self.test["categories"]))
        return {name: value.numpy() for name, value in outputs.items()}

    def _judged(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        target = self.test["target"]
        if self.is_regression:
            error = float(np.mean((outputs["value"] - target) ** 2))
            return {"root_mean_squared_error": error**0.5, "r_squared": 1 - error / float(np.var(target))}
        right = np.argmax(outputs["logits"], axis=-1) == target
        recalls = [float(np.mean(right[target == label])) for label in range(len(self.classes))]
        return {"accuracy": float(np.mean(right)), "balanced_accuracy": float(np.mean(recalls))}

    def export(self, folder: Path) -> export.ExportReport:
        specs = [
            tf.TensorSpec([None, self.test[name].shape[1]], self.test[name].dtype, name)
            for name in ("numbers", "categories")
        ]
        used = specs if self.vocabularies else specs[:1]  # an input that nothing depends on is none
        names = [spec.name for spec in used]
        inputs = {name: self.test[name] for name in names}
        return export_all(
            self.model,
            folder,
            self.config.exports,
            signatures={"serving_default": (self.predict, used)},
            representative=[{name: self.train[name][i : i + 1] for name in names} for i in range(100)],
            metric=lambda predict: self._quality(predict(inputs)),
            max_drop=self.config.max_drop,
        )

    def _quality(self, outputs: Mapping[str, np.ndarray]) -> float:
        return self._judged(outputs)["r_squared" if self.is_regression else "accuracy"]

    def sections(self) -> Sequence[report.Section]:
        outputs = self._predicted()
        if self.is_regression:
            return [report.Section("Test rows", "Predicted and true values.", charts=[self._scatter(outputs["value"])])]
        table = self._confusion(np.argmax(outputs["logits"], axis=-1))
        return [
            report.Section(
                "Test rows", "How many of each class (lines) were taken for which (columns).", charts=[table]
            )
        ]

    def _scatter(self, predicted: np.ndarray) -> str:
        figure = Figure(figsize=(5, 4.5), layout="constrained")
        axes = figure.subplots()
        target = self.test["target"]
        axes.plot([target.min(), target.max()], [target.min(), target.max()], color="#c0c8d0")
        axes.scatter(target, predicted, s=14)
        axes.set(xlabel="true", ylabel="predicted")
        return report.svg(figure)

    def _confusion(self, predicted: np.ndarray) -> str:
        counts = np.zeros([len(self.classes)] * 2, int)
        np.add.at(counts, (self.test["target"], predicted), 1)
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        axes.imshow(counts, cmap="Blues")
        for (row, column), count in np.ndenumerate(counts):
            axes.text(column, row, str(count), ha="center", color="white" if count > counts.max() / 2 else "black")
        axes.set_xticks(range(len(self.classes)), self.classes)
        axes.set_yticks(range(len(self.classes)), self.classes)
        axes.set(xlabel="predicted", ylabel="true")
        return report.svg(figure)


JOB = Tabular
