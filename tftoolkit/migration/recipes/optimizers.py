"""Recipes for ``tfa.optimizers``: rules for ``trainers.Update``, and schedules for any of its optimizers."""

import tensorflow as tf

from tftoolkit.trainers import optimizers


def cyclical_learning_rate(initial, maximal, step_size, scale_fn=lambda cycle: 1.0, scale_mode="cycle"):
    """A schedule. Triangular: as it is; Triangular2: lambda cycle: 2.0 ** (1 - cycle); Exponential: with
    lambda step: gamma**step and scale_mode="iterations"."""

    def schedule(iterations):
        step = tf.cast(iterations, tf.float32)
        cycle = tf.floor(1 + step / (2 * step_size))
        height = tf.maximum(0.0, 1 - tf.abs(step / step_size - 2 * cycle + 1))
        return initial + (maximal - initial) * height * scale_fn(cycle if scale_mode == "cycle" else step)

    return schedule


class ConditionalGradient(optimizers.Rule):
    """``learning_rate`` is how much of the weight stays, as in TFA; ``lambda_`` is the norm ball's radius."""

    def __init__(self, learning_rate, lambda_=0.01, epsilon=1e-7, ord="fro"):
        super().__init__(learning_rate)
        self.lambda_, self.epsilon, self.ord = lambda_, epsilon, ord

    def moved(self, one):
        g = one.gradient
        if self.ord == "fro":
            corner = g / (tf.norm(g) + self.epsilon)
        else:  # "nuclear"
            _, u, v = tf.linalg.svd(g)
            corner = tf.matmul(u[:, :1], v[:, :1], transpose_b=True)
        return one.value * one.rate - (1 - one.rate) * self.lambda_ * corner


class NovoGrad(optimizers.Rule):
    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, l2=0.0, grad_averaging=False):
        super().__init__(learning_rate)
        self.beta_1, self.beta_2, self.epsilon, self.l2 = beta_1, beta_2, epsilon, l2  # l2: weight_decay there
        self.grad_averaging = grad_averaging

    def slot_names(self):
        return ("m", "v", *super().slot_names())

    def _new_slot(self, slot, weight):
        return tf.Variable(0.0, trainable=False) if slot == "v" else super()._new_slot(slot, weight)

    def scalars(self, t):
        return (t,)

    def moved(self, one, t):
        squares = tf.reduce_sum(tf.square(one.gradient))
        kept = tf.where(t > 1, self.beta_2, 0.0)
        v = one.change("v", lambda v: kept * v + (1 - kept) * squares)
        g = one.gradient / (tf.sqrt(v) + self.epsilon) + self.l2 * one.value
        part = tf.where(t > 1, 1 - self.beta_1, 1.0) if self.grad_averaging else 1.0
        return one.value + one.change("m", lambda m: self.beta_1 * m - one.rate * part * g)


class ProximalAdagrad(optimizers.Rule):
    def __init__(self, learning_rate=1e-3, initial_accumulator_value=0.1, l1=0.0, l2=0.0):
        super().__init__(learning_rate)
        self.initial, self.l1, self.l2 = initial_accumulator_value, l1, l2

    def slot_names(self):
        return ("s", *super().slot_names())

    def moved(self, one):
        total = one.change("s", lambda s: s + tf.square(one.gradient)) + self.initial
        rate = one.rate * tf.math.rsqrt(total)
        moved = one.value - rate * one.gradient
        return tf.sign(moved) * tf.maximum(tf.abs(moved) - rate * self.l1, 0.0) / (1 + rate * self.l2)


def _rectified(one, t, m, root, beta_1, beta_2, epsilon, threshold):
    """Liu et al. 2020, algorithm 2: Adam's step where its variance is tractable, the plain momentum before."""
    longest = 2 / (1 - beta_2) - 1
    length = longest - 2 * t * beta_2**t / (1 - beta_2**t)
    share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    adaptive = length >= threshold
    scale = tf.sqrt(tf.where(adaptive, share, 1.0))
    mean, root = m / (1 - beta_1**t), root / tf.sqrt(1 - beta_2**t)
    return tf.where(adaptive, scale * mean / (root + epsilon), mean)


class RectifiedAdam(optimizers.Rule):
    """Decay and warm-up: ``weight_decay``, which like there is multiplied by the rate, and a schedule."""

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, weight_decay=0.0, sma_threshold=5.0):
        super().__init__(learning_rate, weight_decay=weight_decay)
        self.beta_1, self.beta_2, self.epsilon, self.threshold = beta_1, beta_2, epsilon, sma_threshold

    def slot_names(self):
        return ("m", "v", *super().slot_names())

    def scalars(self, t):
        return (t,)

    def moved(self, one, t):
        m = one.change("m", lambda m: self.beta_1 * m + (1 - self.beta_1) * one.gradient)
        v = one.change("v", lambda v: self.beta_2 * v + (1 - self.beta_2) * tf.square(one.gradient))
        way = _rectified(one, t, m, tf.sqrt(v), self.beta_1, self.beta_2, self.epsilon, self.threshold)
        return one.value - one.rate * one.decayed(way)


class AdaBelief(RectifiedAdam):
    def __init__(self, learning_rate=1e-3, epsilon=1e-14, **options):
        super().__init__(learning_rate, epsilon=epsilon, **options)

    def moved(self, one, t):
        m = one.change("m", lambda m: self.beta_1 * m + (1 - self.beta_1) * one.gradient)
        surprise = tf.square(one.gradient - m)
        s = one.change("v", lambda s: self.beta_2 * s + (1 - self.beta_2) * surprise + self.epsilon)
        way = _rectified(one, t, m, tf.sqrt(s), self.beta_1, self.beta_2, self.epsilon, self.threshold)
        return one.value - one.rate * one.decayed(way)


class Yogi(optimizers.Rule):
    def __init__(self, learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-3, initial_accumulator_value=1e-6):
        super().__init__(learning_rate)
        self.beta_1, self.beta_2, self.epsilon, self.initial = beta1, beta2, epsilon, initial_accumulator_value

    def slot_names(self):
        return ("m", "v", *super().slot_names())

    def _new_slot(self, slot, weight):
        variable = super()._new_slot(slot, weight)
        if slot in ("m", "v"):
            variable.assign(tf.fill(variable.shape, self.initial))
        return variable

    def scalars(self, t):
        return (t,)

    def moved(self, one, t):
        squares = tf.square(one.gradient)
        m = one.change("m", lambda m: self.beta_1 * m + (1 - self.beta_1) * one.gradient)
        v = one.change("v", lambda v: v - (1 - self.beta_2) * tf.sign(v - squares) * squares)
        rate = one.rate * tf.sqrt(1 - self.beta_2**t) / (1 - self.beta_1**t)
        return one.value - rate * m / (tf.sqrt(v) + self.epsilon)


class COCOB(optimizers.Rule):
    """Without a learning rate (a factor of 1): COCOB(1.0)."""

    def __init__(self, learning_rate=1.0, alpha=100):
        super().__init__(learning_rate)
        self.alpha = alpha

    def slot_names(self):
        return ("largest", "sum", "sizes", "way", "reward", *super().slot_names())

    def moved(self, one):
        g, size, way = one.gradient, tf.abs(one.gradient), one.read("way")
        largest = one.change("largest", lambda old: tf.maximum(tf.maximum(old, size), 1e-8))
        total = one.change("sum", lambda old: old + g)
        sizes = one.change("sizes", lambda old: old + size)
        reward = one.change("reward", lambda old: tf.maximum(old - g * way, 0.0))
        most = tf.maximum(sizes + largest, self.alpha * largest)
        new_way = one.write("way", way, -total / (largest * most) * (reward + largest))
        return one.value + one.rate * (new_way - way)
