"""Two networks, two optimizers: a generative adversarial network (Goodfellow et al. 2014, non-saturating loss).

The generator learns a known distribution in the plane. With the moving average of its weights (Yazıcı et al. 2019) the
mean comes out within 0.1 and the covariance within 0.15 of the truth.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tftoolkit import trainers
from tftoolkit.trainers.examples.parts import Mlp, train

MEAN = np.array([1.0, -0.5])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])
NOISE = 4
STEPS = 2000


class Gan(trainers.Step):
    def __init__(self) -> None:
        super().__init__()
        self.generator = Mlp(NOISE, 32, 32, 2, seed=1)
        self.critic = Mlp(2, 32, 32, 1, seed=2)
        self.update_generator = trainers.Update(self.generator, _adam(), ema=0.995)
        self.update_critic = trainers.Update(self.critic, _adam())

    def __call__(self, batch: Mapping[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        real = batch["point"]
        noise = tf.random.stateless_normal([real.shape[0], NOISE], key)
        # One pass through both networks serves both losses.
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(noise)
            of_fake, of_real = self.critic(fake), self.critic(real)
            critic_loss = tf.reduce_mean(tf.nn.softplus(of_fake) + tf.nn.softplus(-of_real))
            generator_loss = tf.reduce_mean(tf.nn.softplus(-of_fake))
        critic_gradients = tape.gradient(critic_loss, self.update_critic.weights)
        generator_gradients = tape.gradient(generator_loss, self.update_generator.weights)
        self.update_critic.apply(critic_gradients)
        self.update_generator.apply(generator_gradients)
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}


def _adam() -> trainers.optimizers.Optimizer:
    rates = trainers.schedules.linear(2e-3, STEPS, end=1e-4)
    return trainers.optimizers.AdamW(rates, beta_1=0.5, weight_decay=0.0)


def main() -> tuple[np.ndarray, np.ndarray]:
    """Train; returns the mean (2) and covariance (2, 2) of 20,000 generated points."""
    step = Gan()
    points = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, size=8192).astype(np.float32)
    train(step, {"point": points}, batch_size=128, steps=STEPS)
    with step.update_generator.ema_weights():
        samples = step.generator(tf.random.stateless_normal([20_000, NOISE], [1, 2])).numpy()
    return samples.mean(0), np.cov(samples.T)


if __name__ == "__main__":
    mean, covariance = main()
    print(f"mean {mean} (true {MEAN})\ncovariance {covariance.tolist()} (true {COVARIANCE.tolist()})")
