"""What quantisation-aware training is for: int8 files of the digits as accurate as the float model, hard cases too."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import export, pipelines, trainers
from tftoolkit.models import DigitsCnn

IMAGE = tf.TensorSpec([None, 8, 8, 1], tf.float32, "image")
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Batches of the digits, and functions that train on them, export a model and find its accuracy in percent."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield Digits(tmp_path_factory)
    patch.undo()


class Digits:
    def __init__(self, tmp_path_factory):
        self.folder = tmp_path_factory.mktemp
        self.test = next(iter(self._batches("test", 360, 0).dataset(epochs=1).as_numpy_iterator()))

    @staticmethod
    def _batches(split, size, seed):
        pipeline = pipelines.Pipeline(pipelines.sources.tfds("digits", split=split), seed=seed)
        if split == "train":
            pipeline = pipeline.shuffle().map(pipelines.image.random_shift(1))
        return pipeline.map(pipelines.image.normalize(16.0)).batch(size, drop_remainder=split == "train")

    def train(self, model, call, rate, steps, seed):
        class Step(trainers.Step):
            def __init__(self):
                super().__init__()
                self.model = model
                self.owner = getattr(call, "__self__", None)  # of the ranges
                self.update = trainers.Update(
                    model, trainers.optimizers.AdamW(trainers.schedules.cosine(rate, steps)), clip_norm=1.0
                )

            def __call__(self, batch, key):
                with tf.GradientTape() as tape:
                    logits = call(batch["image"], key)
                    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits)
                    loss = tf.reduce_mean(losses)
                return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}

        trainers.Trainer(Step(), self._batches("train", 64, seed), self.folder("run"), runner="graph").run(steps)

    def accuracy(self, call):
        return 100 * float(np.mean(np.argmax(call(self.test["image"]), -1) == self.test["label"]))

    def int8_accuracy(self, call):
        row = export.tflite(
            tf.Module(),
            self.folder("export") / "m.tflite",
            signatures={"serving_default": (lambda image: {"logits": call(image)}, [IMAGE])},
            quantize="int8",
            representative=self._batches("train", 64, 0)
            .dataset()
            .map(lambda batch: {"image": batch["image"]})
            .take(5)
            .as_numpy_iterator(),
            metric=lambda predict: self.accuracy(lambda image: predict({"image": image})["logits"]),
            max_drop=100.0,  # the models that lose nearly everything are measured as well
        ).rows[0]
        assert "int8" in row.format
        return row.metric


@pytest.mark.parametrize("seed", SEEDS)
def test_the_digits_model_loses_nothing(digits, seed, capsys):
    model = DigitsCnn(channels=16, dropout=0.3, seed=seed)
    digits.train(model, model, 3e-3, 1200, seed)
    accuracy, calibrated = digits.accuracy(model), digits.int8_accuracy(model)
    found = {}
    weights = [variable.numpy() for variable in model.trainable_variables]
    for ranges in ("calibrated", "learned"):
        quantized = trainers.FakeQuantization(model, IMAGE, ranges=ranges)
        trained = quantized if ranges == "learned" else model
        digits.train(trained, quantized.train, 3e-4, 200, seed)
        found[ranges] = digits.int8_accuracy(quantized)
        for variable, value in zip(model.trainable_variables, weights, strict=True):
            variable.assign(value)
    with capsys.disabled():
        print(f"\nseed {seed}: float {accuracy:.2f} %, int8 after training {calibrated:.2f} %, QAT {found}")
    assert accuracy > 98
    assert min(found.values()) >= accuracy - 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_channels_of_very_different_size(digits, seed, capsys):
    """Weights over three decades per channel before a depthwise convolution (Nagel et al. 2019, section 3)."""
    package = keras.layers
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input([8, 8, 1]),
            package.Conv2D(24, 3, padding="same", use_bias=False),
            package.BatchNormalization(name="norm"),
            package.ReLU(),
            package.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise"),
            package.BatchNormalization(),
            package.ReLU(),
            package.MaxPooling2D(),
            package.Conv2D(32, 3, padding="same", activation="relu"),
            package.MaxPooling2D(),
            package.Flatten(),
            package.Dense(10),
        ]
    )
    digits.train(model, lambda image, key: model(image, training=True), 3e-3, 600, seed)
    # A ReLU hands factors on, so the model computes the same afterwards.
    factors = 10.0 ** np.random.default_rng(seed).uniform(-1.5, 1.5, 24)
    gamma, beta, *moving = model.get_layer("norm").get_weights()
    model.get_layer("norm").set_weights([gamma * factors, beta * factors, *moving])
    (kernel,) = model.get_layer("depthwise").get_weights()
    model.get_layer("depthwise").set_weights([kernel / factors[:, None]])
    weights = model.get_weights()
    accuracy, calibrated = digits.accuracy(model), digits.int8_accuracy(model)
    digits.train(model, lambda image, key: model(image, training=True), 1e-3, 300, seed)
    longer = digits.int8_accuracy(model)  # as many steps as the other, without rounding
    model.set_weights(weights)
    quantized = trainers.FakeQuantization(model, IMAGE)
    digits.train(quantized, lambda image, key: quantized.train(image, training=True), 1e-3, 300, seed)
    trained = digits.int8_accuracy(quantized)
    with capsys.disabled():
        print(
            f"\nseed {seed}: float {accuracy:.2f} %, int8 after training {calibrated:.2f} %, after 300 more steps in "
            f"float {longer:.2f} %, QAT {trained:.2f} %"
        )
    assert accuracy > 98
    assert calibrated < accuracy - 1
    assert trained > max(calibrated, longer)
    assert trained >= accuracy - 1
