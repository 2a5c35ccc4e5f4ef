"""A gradient inside a gradient: Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, algorithm 1).

The data lie in eight clumps on a circle, where plain GANs tend to lose some. The generator must hit all eight: each
holds at least 4 % of its points, and at least 80 % of all points are near one.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.examples.parts import Mlp, train

CLUMPS = 2 * np.stack([(np.cos(angle), np.sin(angle)) for angle in np.arange(8) * np.pi / 4]).astype(np.float32)
SPREAD = 0.1
NOISE, CRITIC_STEPS, PENALTY = 2, 4, 0.1
STEPS = 2000


class WganGp(trainers.Step):
    def __init__(self) -> None:
        super().__init__()
        self.generator = Mlp(NOISE, 64, 64, 64, 2, seed=1)
        self.critic = Mlp(2, 64, 64, 64, 1, seed=2)
        self.update_generator = trainers.Update(self.generator, _adam(STEPS), ema=0.99)
        self.update_critic = trainers.Update(self.critic, _adam(STEPS * CRITIC_STEPS))

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        keys = tf.random.split(key, CRITIC_STEPS + 1)
        reals = tf.reshape(batch["point"], [CRITIC_STEPS, -1, 2])
        distance = tf.zeros([])
        for i in tf.range(CRITIC_STEPS):  # a loop in the compiled program, too
            distance = self._train_critic(reals[i], keys[i])
        with tf.GradientTape() as tape:
            fake = self.generator(tf.random.stateless_normal([reals.shape[1], NOISE], keys[CRITIC_STEPS]))
            loss = -tf.reduce_mean(self.critic(fake))
        self.update_generator.apply(tape.gradient(loss, self.update_generator.weights))
        return {"distance": distance}

    def _train_critic(self, real: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        noise_key, mix_key = tf.unstack(tf.random.split(key, 2))
        fake = self.generator(tf.random.stateless_normal([real.shape[0], NOISE], noise_key))
        with tf.GradientTape() as tape:
            distance = tf.reduce_mean(self.critic(real)) - tf.reduce_mean(self.critic(fake))
            between = fake + tf.random.stateless_uniform([real.shape[0], 1], mix_key) * (real - fake)
            with tf.GradientTape() as inner:
                inner.watch(between)
                score = self.critic(between)
            slope = tf.norm(inner.gradient(score, between) + 1e-12, axis=-1)
            loss = PENALTY * tf.reduce_mean((slope - 1) ** 2) - distance
        self.update_critic.apply(tape.gradient(loss, self.update_critic.weights))
        return distance


def _adam(updates: int) -> trainers.optimizers.Optimizer:
    rates = trainers.schedules.linear(2e-3, updates, end=2e-4)
    return trainers.optimizers.AdamW(rates, beta_1=0.5, beta_2=0.9, weight_decay=0.0)


def main() -> tuple[np.ndarray, float]:
    """Train; returns each clump's share of the generated points (8), and the share of points within 0.4 of a clump."""
    step = WganGp()
    rng = np.random.default_rng(0)
    points = CLUMPS[rng.integers(8, size=16384)] + SPREAD * rng.normal(size=[16384, 2]).astype(np.float32)
    train(step, {"point": points}, batch_size=CRITIC_STEPS * 64, steps=STEPS)
    with step.update_generator.ema_weights():
        samples = step.generator(tf.random.stateless_normal([10_000, NOISE], [1, 2])).numpy()
    distances = np.linalg.norm(samples[:, None] - CLUMPS, axis=-1)
    near = distances.min(1) < 0.4
    return np.bincount(distances.argmin(1)[near], minlength=8) / len(samples), float(near.mean())


if __name__ == "__main__":
    shares, near = main()
    print(f"shares of the clumps: {shares.round(3)}, together {near:.1%}")
