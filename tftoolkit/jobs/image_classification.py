"""Trains an image classifier on a TFDS data set, exports it, and writes the report of the run."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tftoolkit import export, pipelines, report, trainers
from tftoolkit.jobs import run_folder
from tftoolkit.models import DigitsCnn
from tftoolkit.trainers.console import phase
from tftoolkit.trainers.distribution.replicas import Workers


class Classifier(trainers.Step):
    """Cross-entropy on the features "image" and "label"."""

    def __init__(self, model: DigitsCnn, update: trainers.Update) -> None:
        super().__init__()
        self.model = model
        self.update = update

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        def losses(batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> trainers.Losses:
            labels = batch["label"]
            logits = self.model(batch["image"], key)
            correct = tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels
            values = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            return trainers.Losses(values, metrics={"accuracy": tf.cast(correct, tf.float32)})

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


def run(config: ConfigDict, directory: Path) -> None:
    """Trains (or goes on training), exports and reports; what is finished already is not done again.

    Writes ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``export/`` and ``report.html``.
    Of several workers (``tftoolkit launch``) all train, and the first writes.

    Raises RunFolderError, and what Trainer.run and the exporters raise.
    """
    strategy = trainers.distributed_strategy()  # before any operation runs
    is_chief = Workers(strategy).is_chief
    if is_chief:
        run_folder.claim(directory, config.to_dict())
    said = phase if is_chief else contextlib.nullcontext
    with said(f"{config.dataset}: reading the test split"):
        test = all_test_examples(config)
    with said("tracing the training step"):
        with strategy.scope() if strategy else contextlib.nullcontext():
            step = _step(config)
        trainer = _trainer(config, directory, step, test)
    summary = trainer.run(config.steps)
    if is_chief:
        _finish(config, directory, step.model, test, trainer, summary)


def _finish(
    config: ConfigDict,
    directory: Path,
    model: DigitsCnn,
    test: dict[str, np.ndarray],
    trainer: trainers.Trainer,
    summary: trainers.Summary,
) -> None:
    """What comes after training, as far as it isn't there yet."""
    table_file = directory / "export" / "report.txt"
    page = directory / "report.html"
    if not table_file.exists():
        page.unlink(missing_ok=True)
        print("Exporting; each file is run in its own runtime and compared before it is written.")
        proof = _export(config, directory / "export", model, test)
        with phase("report.html"):
            _write_page(config, page, model, test, trainer, proof)
        run_folder.write_text(table_file, f"{proof}\n")  # last: it says that export and page are complete
    accuracy = summary.evaluation["accuracy"]
    expected = config.expected.test_accuracy
    print(f"\n{table_file.read_text()}")
    print(
        f"test accuracy {accuracy:.2%} (the recipe expects at least {expected:.1%}), "
        f"{summary.seconds:.1f} s of training"
    )
    print(f"report: {page.resolve()}")


def _pipeline(config: ConfigDict, split: str) -> pipelines.Pipeline:
    source = pipelines.sources.tfds(config.dataset, split=split)
    return pipelines.Pipeline(source, seed=config.seed)


def training_pipeline(config: ConfigDict) -> pipelines.Pipeline:
    """The batches that ``run`` trains on."""
    return (
        _pipeline(config, "train")
        .shuffle()
        .map(pipelines.image.random_shift(config.random_shift))
        .map(pipelines.image.normalize(config.max_pixel))
        .batch(config.batch_size, drop_remainder=True)
    )


def _step(config: ConfigDict) -> Classifier:
    model = DigitsCnn(config.channels, config.dropout, config.seed)
    schedule = trainers.schedules.cosine(config.learning_rate, config.steps, warmup_steps=config.warmup_steps)
    optimizer = trainers.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
    return Classifier(model, trainers.Update(model, optimizer, clip_norm=config.clip_norm))


def _trainer(config: ConfigDict, directory: Path, step: Classifier, test: dict[str, np.ndarray]) -> trainers.Trainer:
    return trainers.Trainer(
        step,
        training_pipeline(config),
        directory,
        runner=config.runner,
        steps_per_call=config.steps_per_call,
        evaluate=_evaluation(step.model, test),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        seed=config.seed,
    )


def all_test_examples(config: ConfigDict) -> dict[str, np.ndarray]:
    batches = _pipeline(config, "test").map(pipelines.image.normalize(config.max_pixel)).batch(256).dataset(epochs=1)
    parts = list(batches.as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in ("image", "label")}


def _evaluation(model: DigitsCnn, test: dict[str, np.ndarray]) -> Callable[[], dict[str, float]]:
    @tf.function
    def evaluate() -> tuple[tf.Tensor, tf.Tensor]:
        logits = model(tf.constant(test["image"]))
        labels = tf.constant(test["label"])
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return loss, tf.reduce_sum(tf.cast(tf.argmax(logits, axis=-1) == labels, tf.int32))

    def as_numbers() -> dict[str, float]:
        loss, correct = evaluate()
        return {"loss": float(loss), "accuracy": int(correct) / len(test["label"])}

    return as_numbers


def _export(config: ConfigDict, folder: Path, model: DigitsCnn, test: dict[str, np.ndarray]) -> export.ExportReport:
    shutil.rmtree(folder, ignore_errors=True)  # half an export of a killed run
    folder.mkdir(parents=True)
    with phase(f"{config.dataset}: reading examples for calibration"):
        calibration = list(_calibration(config))
    image = tf.TensorSpec([None, *test["image"].shape[1:]], tf.float32, "image")
    arguments: dict[str, Any] = {
        "signatures": {"serving_default": (lambda image: {"logits": model(image)}, [image])},
        "representative": calibration,
        "metric": lambda predict: float(np.mean(_classes(predict, test["image"]) == test["label"])),
        "max_drop": config.max_drop,
    }
    proof = export.saved_model(model, folder / "saved_model", **arguments)
    proof += export.saved_model(model, folder / "saved_model_native", ops="native", **arguments)
    proof += export.tflite(model, folder / "model.tflite", **arguments)
    proof += export.tflite(model, folder / "model_float16.tflite", quantize="float16", **arguments)
    proof += export.tflite(model, folder / "model_int8.tflite", quantize="int8", **arguments)
    missing = [name for name in ("tf2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"No ONNX file, since {', '.join(missing)} is not installed: pip install 'tftoolkit[onnx]'")
    else:
        proof += export.onnx(model, folder / "model.onnx", **arguments)
    run_folder.write_text(folder / "report.json", proof.to_json() + "\n")
    return proof


def _classes(predict: Callable[..., dict[str, np.ndarray]], images: np.ndarray) -> np.ndarray:
    return np.argmax(predict({"image": images})["logits"], axis=-1)


def _calibration(config: ConfigDict) -> Iterator[dict[str, np.ndarray]]:
    images = _pipeline(config, "train").shuffle().map(pipelines.image.normalize(config.max_pixel)).batch(1)
    for batch in images.dataset().take(config.calibration_examples).as_numpy_iterator():
        yield {"image": batch["image"]}


def _write_page(
    config: ConfigDict,
    page: Path,
    model: DigitsCnn,
    test: dict[str, np.ndarray],
    trainer: trainers.Trainer,
    proof: export.ExportReport,
) -> None:
    predicted = np.argmax(model(tf.constant(test["image"])), axis=-1)
    text = report.render(
        title=f"{config.dataset}: {trainer.finished_steps} steps",
        metrics=report.read_metrics(page.parent / "metrics.jsonl"),
        samples=report.samples(test["image"], test["label"], predicted),
        proof=proof,
        config=config.to_dict(),
    )
    run_folder.write_text(page, text)
