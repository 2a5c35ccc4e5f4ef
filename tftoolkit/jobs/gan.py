"""Trains a generator of small pictures: a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, algorithm 1).

https://arxiv.org/abs/1704.00028
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tftoolkit import export, models, pipelines, report, trainers
from tftoolkit.jobs.exports import export_all
from tftoolkit.jobs.job import Job

_DIRECTIONS, _JUDGED = 256, 10_000
_GRID = 60


class GanStep(trainers.Step):
    """Several updates of the critic, each on its own part of the batch, then one of the generator."""

    def __init__(
        self,
        generator: models.DenseNetwork,
        critic: models.DenseNetwork,
        update_generator: trainers.Update,
        update_critic: trainers.Update,
        noise: int,
        critic_steps: int,
        penalty: float,
    ) -> None:
        super().__init__()
        self.generator, self.critic = generator, critic
        self.update_generator, self.update_critic = update_generator, update_critic
        self._noise, self._critic_steps, self._penalty = noise, critic_steps, penalty

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.random.split(key, self._critic_steps + 1)
        reals = tf.reshape(batch["image"], [self._critic_steps, -1, batch["image"].shape[-1]])
        distance = tf.zeros([])
        for i in tf.range(self._critic_steps):  # a loop in the compiled program, too
            distance = self._train_critic(reals[i], keys[i])
        with tf.GradientTape() as tape:
            noise = tf.random.stateless_normal([reals.shape[1], self._noise], keys[self._critic_steps])
            loss = -tf.reduce_mean(self.critic(pictures(self.generator, noise)))
        self.update_generator.apply(tape.gradient(loss, self.update_generator.weights))
        return {"critic_distance": distance}

    def _train_critic(self, real: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """The distance as the critic sees it: how much higher it rates real pictures."""
        noise_key, mix_key = tf.unstack(tf.random.split(key, 2))
        fake = pictures(self.generator, tf.random.stateless_normal([real.shape[0], self._noise], noise_key))
        with tf.GradientTape() as tape:
            distance = tf.reduce_mean(self.critic(real)) - tf.reduce_mean(self.critic(fake))
            between = fake + tf.random.stateless_uniform([real.shape[0], 1], mix_key) * (real - fake)
            with tf.GradientTape() as inner:
                inner.watch(between)
                rating = self.critic(between)
            slope = tf.norm(inner.gradient(rating, between) + 1e-12, axis=-1)
            loss = self._penalty * tf.reduce_mean((slope - 1) ** 2) - distance
        self.update_critic.apply(tape.gradient(loss, self.update_critic.weights))
        return distance


def pictures(generator: models.DenseNetwork, noise: tf.Tensor) -> tf.Tensor:
    """float32 [n, noise] → pixels from 0 to 1, float32 [n, pixels]."""
    return tf.sigmoid(generator(noise))


def sliced_wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """How far two clouds of points lie apart, whatever their numbers of points: [n, d], [m, d] → a distance.

    The mean, over fixed directions, of the Wasserstein-1 distance of their projections (Bonneel et al. 2015,
    https://doi.org/10.1007/s10851-014-0506-3).
    """
    directions = np.random.default_rng(0).standard_normal([one.shape[1], _DIRECTIONS])
    directions /= np.linalg.norm(directions, axis=0)
    levels = (np.arange(1000) + 0.5) / 1000
    quantiles = [np.quantile(points @ directions, levels, axis=0) for points in (one, other)]
    return float(np.mean(np.abs(quantiles[0] - quantiles[1])))


class Gan(Job):
    """Settings: ``dataset``, ``max_pixel``, ``generator`` and ``critic`` (sizes of hidden layers), ``noise``,
    ``critic_steps``, ``penalty``, ``ema``, and those of optimizer and export.

    The generator that is judged, shown and exported is the moving average of its weights.
    """

    charts = ("critic_distance", "distance")

    def read(self) -> None:
        config = self.config
        test = pipelines.Pipeline(pipelines.sources.tfds(config.dataset, split="test"))
        parts = [part["image"] for part in test.batch(256).dataset(epochs=1).as_numpy_iterator()]
        images = np.concatenate(parts).astype(np.float32) / np.float32(config.max_pixel)
        self.shape = images.shape[1:]
        self.test = images.reshape(len(images), -1)

    def pipeline(self) -> pipelines.Pipeline:
        config = self.config
        source = pipelines.sources.tfds(config.dataset, split="train")
        examples = pipelines.Pipeline(source, seed=config.seed).shuffle()
        flat = examples.map(pipelines.image.normalize(config.max_pixel)).map(_flat)
        return flat.batch(config.batch_size * config.critic_steps, drop_remainder=True)

    def step(self) -> GanStep:
        config, pixels = self.config, self.test.shape[1]
        self.generator = models.DenseNetwork(config.noise, *config.generator, pixels, seed=2 * config.seed)
        critic = models.DenseNetwork(pixels, *config.critic, 1, seed=2 * config.seed + 1)
        self.update = trainers.Update(self.generator, self._adam(config.steps), ema=config.ema)
        update_critic = trainers.Update(critic, self._adam(config.steps * config.critic_steps))
        return GanStep(
            self.generator, critic, self.update, update_critic, config.noise, config.critic_steps, config.penalty
        )

    def _adam(self, updates: int) -> trainers.optimizers.Optimizer:
        rate = self.config.learning_rate
        rates = trainers.schedules.linear(rate, updates, end=rate / 10)
        return trainers.optimizers.Adam(rates, beta_1=0.0, beta_2=0.9)

    def _drawn(self, count: int) -> np.ndarray:
        noise = tf.random.stateless_normal([count, self.config.noise], [self.config.seed, 1])
        with self.update.ema_weights():
            drawn: np.ndarray = pictures(self.generator, noise).numpy()
        return drawn

    def evaluate(self) -> dict[str, float]:
        return {"distance": sliced_wasserstein(self._drawn(_JUDGED), self.test)}

    def export(self, folder: Path) -> export.ExportReport:
        def generate(noise: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"image": tf.reshape(pictures(self.generator, noise), [-1, *self.shape])}

        spec = tf.TensorSpec([None, self.config.noise], tf.float32, "noise")
        rng = np.random.default_rng(0)
        with self.update.ema_weights():
            return export_all(
                self.generator,
                folder,
                self.config.exports,
                signatures={"serving_default": (generate, [spec])},
                representative=[
                    {"noise": rng.standard_normal([1, self.config.noise]).astype(np.float32)} for _ in range(200)
                ],
            )

    def sections(self) -> Sequence[report.Section]:
        drawn, real = self._drawn(_GRID), self.test[:_GRID]
        nearest = np.sqrt(np.min(np.sum((drawn[:, np.newaxis] - self.test) ** 2, axis=-1), axis=1))
        note = "Drawn at random, none chosen. Below each: how far the nearest test picture is, in pixels' values."
        return [
            report.Section(
                "Generated pictures",
                note,
                [
                    report.Picture(report.png(one.reshape(self.shape)), f"{far:.1f}", "a generated picture")
                    for one, far in zip(drawn, nearest, strict=True)
                ],
            ),
            report.Section(
                "Real pictures",
                "Of the test split, to compare.",
                [report.Picture(report.png(one.reshape(self.shape)), "", "a real picture") for one in real],
            ),
        ]


def _flat(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"image": tf.reshape(example["image"], [-1])}


JOB = Gan
