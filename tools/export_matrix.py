"""Every kind of model through every target of ``tftoolkit.export``; writes the tables of docs/export.md.

    python tools/export_matrix.py                                all, about five minutes
    python tools/export_matrix.py --kind tf_keras --target ONNX  one cell, printed only

Each model is a small network that has learned the handwritten digits of scikit-learn; the accuracies are those of the
test split. What an export refuses stands in a table of its own, with the words of the refusal. Targets are named by
the beginning of their name. Needs Chromium and npm for the web page.
"""

import argparse
import dataclasses
import importlib.metadata
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_quantizer import recipe

from tftoolkit import custom_ops, export, jobs, trainers
from tftoolkit.jobs.image_classification import ImageClassification
from tftoolkit.trainers.recipes import digits

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/export.md"
STEPS = 440  # 20 epochs
IMAGE = tf.TensorSpec([1, 8, 8, 1], tf.float32, "image")
PACKAGES = ("tensorflow", "keras", "tf-keras", "ai-edge-litert", "ai-edge-quantizer", "tf2onnx", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class Model:
    """What the exporters take; ``step`` where the training step is at hand, too."""

    source: Any
    signatures: Mapping[str, Any] | None = None
    step: trainers.Step | None = None


class Classifier(trainers.Step):
    """Cross-entropy of a Keras model or a tf.Module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, trainers.optimizers.AdamW(3e-3))

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        def losses(part: Mapping[str, tf.Tensor], key: tf.Tensor) -> tf.Tensor:
            return tf.nn.sparse_softmax_cross_entropy_with_logits(part["label"], self.model(part["image"]))

        gradients = self.update.gradients(losses, batch, key)
        return gradients.metrics() | self.update.apply(gradients)


class Module(tf.Module):
    """With a custom op."""

    def __init__(self) -> None:
        super().__init__()
        random = tf.random.Generator.from_seed(0)
        self.convolution = tf.Variable(random.normal([3, 3, 1, 16]) * 0.4)
        self.gamma = tf.Variable(tf.ones([256]))
        self.hidden = tf.Variable(random.normal([256, 32]) * 0.1)
        self.classes = tf.Variable(random.normal([32, 10]) * 0.2)

    def __call__(self, image: tf.Tensor) -> tf.Tensor:
        features = tf.reshape(tf.nn.relu(tf.nn.conv2d(image, self.convolution, 2, "SAME")), [-1, 256])
        return tf.nn.relu(custom_ops.rms_norm(features, self.gamma) @ self.hidden) @ self.classes


def layers(library: Any) -> list[Any]:
    """Of a small CNN in one of the two Keras generations."""
    return [
        library.layers.Conv2D(16, 3, padding="same", activation="relu"),
        library.layers.MaxPooling2D(),
        library.layers.Conv2D(32, 3, padding="same", activation="relu"),
        library.layers.Flatten(),
        library.layers.Dense(10),
    ]


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.parts = layers(keras)

    def call(self, image: tf.Tensor) -> tf.Tensor:
        for part in self.parts:
            image = part(image)
        return image


def functional() -> keras.Model:
    hidden = inputs = keras.Input([8, 8, 1], name="image")
    for layer in layers(keras):
        hidden = layer(hidden)
    return keras.Model(inputs, hidden)


def trained(model: Any) -> Model:
    """After 20 epochs, with one signature of batch size 1."""
    model(tf.zeros(IMAGE.shape))
    step = Classifier(model)
    compiled = tf.function(step)
    for batch in ImageClassification(digits.get_config()).pipeline().dataset().take(STEPS):
        compiled(batch, tf.zeros([2], tf.int32))
    return Model(model, {"serving_default": (lambda image: {"logits": model(image)}, [IMAGE])}, step)


def on_disk(folder: Path) -> Model:
    """A SavedModel as TensorFlow writes it, loaded without the model's Python code."""
    made = trained(functional())
    function, specs = made.signatures["serving_default"]
    module = tf.Module()
    module.model = made.source
    tf.saved_model.save(module, str(folder / "disk"), {"serving_default": tf.function(function, input_signature=specs)})
    return Model(folder / "disk")


def run_folder(folder: Path) -> Model:
    """What ``tftoolkit train digits`` leaves, with its custom op still in it; free batch size."""
    config = digits.get_config()
    config.steps = STEPS
    jobs.run(ImageClassification(config), folder / "run")
    return Model(folder / "run/export/saved_model_native")


KINDS: dict[str, Callable[[Path], Model]] = {
    "tf.Module with a custom op": lambda folder: trained(Module()),
    "tf_keras, Sequential": lambda folder: trained(tf_keras.Sequential([tf_keras.Input([8, 8, 1]), *layers(tf_keras)])),
    "Keras 3, functional": lambda folder: trained(functional()),
    "Keras 3, subclassed": lambda folder: trained(Subclassed()),
    "SavedModel on disk": on_disk,
    "a training run, free batch": run_folder,
}


@dataclasses.dataclass(frozen=True)
class Data:
    """Test pictures, and training pictures one by one for calibration."""

    images: np.ndarray
    labels: np.ndarray
    real: list[dict[str, np.ndarray]]
    batches: list[dict[str, np.ndarray]]

    def accuracy(self, predict: Callable[..., dict[str, np.ndarray]]) -> float:
        found = [np.argmax(predict({"image": image[np.newaxis]})["logits"]) for image in self.images]
        return float(np.mean(np.array(found) == self.labels))


def load_data() -> Data:
    job = ImageClassification(digits.get_config())
    job.read()
    test = job.test
    batches = list(job.pipeline().dataset().take(50).as_numpy_iterator())
    real = [{"image": image[np.newaxis]} for image in np.concatenate([batch["image"] for batch in batches[:2]])]
    return Data(test["image"], test["label"], real, batches)


Export = Callable[[Model, Path, Data], export.ExportReport]


def usual(exporter: Callable[..., export.ExportReport], **settings: Any) -> Export:
    def call(model: Model, path: Path, data: Data) -> export.ExportReport:
        return exporter(
            model.source, path, signatures=model.signatures, representative=data.real, metric=data.accuracy, **settings
        )

    return call


def trainable(model: Model, path: Path, data: Data) -> export.ExportReport:
    if model.step is None:
        raise ValueError("a SavedModel holds no training step")
    infer = model.signatures["serving_default"] if model.signatures else None
    report = export.trainable_tflite(model.step, path, batches=data.batches, infer=infer)
    found = export.verify(path, metric=data.accuracy).rows[0]
    golden = data.accuracy(lambda inputs: {"logits": model.source(inputs["image"])})
    return export.ExportReport((dataclasses.replace(report.rows[0], metric=found.metric, golden_metric=golden),))


def web(model: Model, path: Path, data: Data) -> export.ExportReport:
    """Of the float32 file."""
    file = path.with_name(f"{path.name}.tflite")
    export.tflite(model.source, file, signatures=model.signatures, representative=data.real)
    return export.web(file, path)


TARGETS: dict[str, tuple[str, Export]] = {
    "SavedModel": ("saved", usual(export.saved_model)),
    "SavedModel, native": ("native", usual(export.saved_model, ops="native")),
    "TFLite float32": ("float32.tflite", usual(export.tflite)),
    "TFLite float16": ("float16.tflite", usual(export.tflite, quantize="float16")),
    "TFLite dynamic": ("dynamic.tflite", usual(export.tflite, quantize="dynamic")),
    "TFLite int8": ("int8.tflite", usual(export.tflite, quantize="int8")),
    "TFLite int8, integer I/O": ("int8_io.tflite", usual(export.tflite, quantize="int8", integer_io=True)),
    "TFLite int16x8": ("int16.tflite", usual(export.tflite, quantize="int16x8")),
    "TFLite int8, a layer in float": (
        "kept.tflite",
        usual(export.tflite, quantize="int8", keep_float=["(?i).*matmul.*"]),
    ),
    "TFLite, a recipe": ("recipe.tflite", usual(export.tflite, quantize=recipe.static_wi8_ai8())),
    "TFLite, native ops": ("delegate.tflite", usual(export.tflite, ops="native")),
    "ONNX": ("model.onnx", usual(export.onnx)),
    "TFLite that trains": ("trains.tflite", trainable),
    "web page": ("page", web),
}

Cell = export.Row | str  # what was measured, or why it was refused


def cell(model: Model, target: str, folder: Path, data: Data) -> Cell:
    name, call = TARGETS[target]
    try:
        return call(model, folder / name, data).rows[0]
    except (export.ExportError, ValueError, TypeError) as error:
        if (folder / name).exists():
            raise AssertionError(f"{target} was refused and left a file") from error
        return str(error)


def tables(cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """By kind of model what was measured, then what was refused."""
    parts = []
    for kind, found in cells.items():
        lines = [
            f"**{kind}**\n",
            "| target | max error | bound | accuracy | drop | size, kB | ms, median | p95 |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        lines += [f"| {target} | {' | '.join(_figures(row))} |" for target, row in found.items()]
        parts.append("\n".join(lines))
    refusals: dict[tuple[str, str], list[str]] = {}
    for kind, found in cells.items():
        for target, row in found.items():
            if isinstance(row, str):
                refusals.setdefault((target, _short(row)), []).append(kind)
    lines = ["| refused | of | because |", "|---|---|---|"]
    lines += [f"| {target} | {', '.join(kinds)} | {reason} |" for (target, reason), kinds in refusals.items()]
    return "\n\n".join([*parts, "\n".join(lines) if refusals else "Nothing was refused."])


def _figures(row: Cell) -> list[str]:
    if isinstance(row, str):
        return ["refused", *[""] * 6]
    worst, (latency,) = row.worst, [row.latency[min(row.latency)]]
    metrics = ["–", "–"]
    if row.metric is not None and row.golden_metric is not None:
        metrics = [f"{row.metric:.2%}", f"{100 * (row.golden_metric - row.metric):.2f}"]
    return [
        *([f"{worst.error:.2g}", f"{worst.bound:.2g}"] if worst else ["–", "–"]), *metrics,
        f"{row.size / 1000:,.1f}", f"{latency.median:.3f}", f"{latency.p95:.3f}",
    ]  # fmt: skip


def _short(reason: str) -> str:
    text = re.sub(r"/\S*/", "", " ".join(reason.split())).replace("|", "\\|")
    return text if len(text) <= 300 else f"{text[:300]}…"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="", help="only kinds that begin so; the tables are printed, not written")
    parser.add_argument("--target", default="", help="only targets that begin so")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import results

    where, start = results.machine(), time.monotonic()
    tf.config.threading.set_intra_op_parallelism_threads(1)  # TensorFlow's latencies are those of one thread, too
    keras.utils.set_random_seed(0)
    tf_keras.utils.set_random_seed(0)
    data = load_data()
    chosen = [name for name in KINDS if name.startswith(arguments.kind)]
    targets = [name for name in TARGETS if name.startswith(arguments.target)]
    text = tables(dict(_rows(chosen, targets, data)))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    text += f"\n\n{where}; {time.strftime('%Y-%m-%d')}; {versions}.\n"
    print(f"{text}\n{time.monotonic() - start:.0f} s")
    if (arguments.kind, arguments.target) == ("", ""):
        results.insert(PAGE, lambda _: f"\n{text}\n")


def _rows(kinds: Iterable[str], targets: Iterable[str], data: Data) -> Iterable[tuple[str, dict[str, Cell]]]:
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            model = KINDS[kind](Path(folder))
            found: dict[str, Cell] = {}
            for target in targets:
                found[target] = cell(model, target, Path(folder), data)
                result = found[target]
                print(f"{kind}, {target}: {result if isinstance(result, str) else 'accepted'}", file=sys.stderr)
        yield kind, found


if __name__ == "__main__":
    main()
