"""A small network learns from a large one (Hinton, Vinyals & Dean 2015): digits, of which only 100 carry labels.

The teacher knows all labels. Trained on its soft answers to unlabelled images, the student must be right on at least
94 % of the test images, and 5 points better than the same network trained on the 100 labels.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.examples.parts import Mlp, accuracy, digits, train

TEMPERATURE = 3.0
LABELLED = 100


class Classify(trainers.Step):
    def __init__(self, model: Mlp) -> None:
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, trainers.optimizers.AdamW(2e-3))

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = self.model(batch["image"])
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


class Distil(trainers.Step):
    def __init__(self, teacher: Mlp, student: Mlp) -> None:
        super().__init__()
        self.teacher = teacher  # held, so that a checkpoint has it; not in the update, so it stays as it is
        self.student = student
        self.update = trainers.Update(student, trainers.optimizers.AdamW(2e-3))

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        soft_labels = tf.nn.softmax(self.teacher(batch["image"]) / TEMPERATURE)
        with tf.GradientTape() as tape:
            logits = self.student(batch["image"]) / TEMPERATURE
            # Squared, since the soft gradients shrink with the temperature's square.
            loss = TEMPERATURE**2 * tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(soft_labels, logits))
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def main() -> dict[str, float]:
    """Train all three; returns their accuracy on the test images."""
    training, test = digits()
    teacher, student, alone = Mlp(64, 256, 10, seed=1), Mlp(64, 16, 10, seed=2), Mlp(64, 16, 10, seed=2)
    train(Classify(teacher), training, batch_size=64, steps=1000)
    train(Distil(teacher, student), {"image": training["image"]}, batch_size=64, steps=2000)
    train(Classify(alone), {k: v[:LABELLED] for k, v in training.items()}, batch_size=50, steps=2000)
    models = {"teacher": teacher, "student": student, "student alone": alone}
    return {name: accuracy(model, test["image"], np.asarray(test["label"])) for name, model in models.items()}


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name}: {value:.1%}")
