"""Learning to learn (MAML, Finn, Abbeel & Levine 2017): sine waves from ten points each, by one step of descent.

The outer gradient goes through the inner step. After one step on the ten points of a new wave the squared error must
be below 1.2, and less than half of what the same step leaves after training on all waves together.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.examples.parts import Mlp, train

POINTS, INNER_RATE, STEPS = 10, 0.01, 3000


def adapted(model: Mlp, x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
    """Weights after one step of descent on each wave's points, ``x`` and ``y`` [waves, points, 1]."""
    waves = x.shape[0]
    weights = [tf.tile(kernel[tf.newaxis], [waves, 1, 1]) for kernel in model.kernels]
    weights += [tf.tile(bias[tf.newaxis, tf.newaxis], [waves, 1, 1]) for bias in model.biases]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        # Added up: each wave's error depends on its own weights only.
        error = tf.reduce_sum(errors(weights, x, y))
    return [w - INNER_RATE * slope for w, slope in zip(weights, tape.gradient(error, weights), strict=True)]


def errors(weights: list[tf.Tensor], x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Mean squared error of each wave by its own network: weights [waves, …] -> [waves]."""
    layers = len(weights) // 2
    for kernel, bias in zip(weights[: layers - 1], weights[layers:-1], strict=True):
        x = tf.nn.relu(x @ kernel + bias)
    return tf.reduce_mean((x @ weights[layers - 1] + weights[-1] - y) ** 2, [1, 2])


class Maml(trainers.Step):
    def __init__(self, *, through_the_inner_step: bool) -> None:
        super().__init__()
        self.model = Mlp(1, 40, 40, 1)
        self.through = through_the_inner_step
        schedule = trainers.schedules.cosine(3e-3, STEPS)
        self.update = trainers.Update(self.model, trainers.optimizers.AdamW(schedule, weight_decay=0.0), clip_norm=10.0)

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        x, y = batch["x"], batch["y"]
        with tf.GradientTape() as tape:
            if self.through:
                weights = adapted(self.model, x[:, :POINTS], y[:, :POINTS])
                loss = tf.reduce_mean(errors(weights, x[:, POINTS:], y[:, POINTS:]))
            else:
                loss = tf.reduce_mean((self.model(x) - y) ** 2)
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def waves(count: int, points: int, seed: int) -> dict[str, np.ndarray]:
    """Amplitude 0.1 to 5, phase 0 to pi, at places from -5 to 5: "x" and "y" float32[count, points, 1]."""
    rng = np.random.default_rng(seed)
    amplitude, phase = rng.uniform(0.1, 5, [count, 1, 1]), rng.uniform(0, np.pi, [count, 1, 1])
    x = rng.uniform(-5, 5, [count, points, 1])
    return {"x": x.astype(np.float32), "y": (amplitude * np.sin(x - phase)).astype(np.float32)}


def main() -> dict[str, float]:
    """Train both ways; returns the squared error on new waves after one step on ten points each."""
    test = {name: tf.constant(value) for name, value in waves(600, 110, seed=1).items()}
    found = {}
    for name, through in (("MAML", True), ("all waves together", False)):
        step = Maml(through_the_inner_step=through)
        train(step, waves(20_000, 2 * POINTS, seed=0), batch_size=25, steps=STEPS)
        weights = adapted(step.model, test["x"][:, :POINTS], test["y"][:, :POINTS])
        found[name] = float(tf.reduce_mean(errors(weights, test["x"][:, POINTS:], test["y"][:, POINTS:])))
    return found


if __name__ == "__main__":
    for name, error in main().items():
        print(f"{name}: squared error {error:.2f} after one step")
