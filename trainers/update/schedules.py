"""Learning-rate schedules: functions from the number of finished optimizer steps to a learning rate.

A schedule takes an int64 scalar tensor (0 before the first update) and returns a float32 scalar tensor. It is made of
plain TensorFlow operations, so it runs eagerly, in a graph and inside XLA alike. Lengths like ``warmup_steps`` are
steps if they are whole numbers and parts of the run if they are fractions: 100, or 0.05.

:class:`Adjustable` and :class:`Plateau` hold their rate in a variable, which hooks may change; checkpoints keep it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

Schedule = Callable[[tf.Tensor], tf.Tensor]


def constant(learning_rate: float) -> Schedule:
    """The same ``learning_rate`` at every step. Raises ValueError where it is negative or not finite."""
    _check_rate("learning_rate", learning_rate)
    return lambda step: tf.constant(learning_rate, tf.float32)


def linear(peak: float, steps: int, *, warmup_steps: int | float = 0, end: float = 0.0) -> Schedule:
    """Rise linearly to ``peak`` over ``warmup_steps``, fall linearly to ``end`` at step ``steps``, then stay there.

    Raises:
        ValueError: a negative rate, or lengths that are no lengths, or longer than the run.
    """
    return _warmed_up(peak, steps, warmup_steps, 0, end, lambda fraction: 1.0 - fraction)


def cosine(peak: float, steps: int, *, warmup_steps: int | float = 0, end: float = 0.0) -> Schedule:
    """Rise linearly to ``peak`` over ``warmup_steps``, follow half a cosine to ``end`` at step ``steps``, then stay.

    The decay is that of SGDR without restarts (Loshchilov & Hutter 2017, equation 5).

    Raises ValueError where ``linear`` does.
    """
    return _warmed_up(peak, steps, warmup_steps, 0, end, lambda fraction: 0.5 * (1.0 + tf.cos(math.pi * fraction)))


def warmup_stable_decay(
    peak: float, steps: int, *, warmup_steps: int | float, decay_steps: int | float, end: float = 0.0
) -> Schedule:
    """Rise linearly to ``peak``, stay there, and fall linearly to ``end`` over the last ``decay_steps`` of ``steps``.

    The stable part can be lengthened afterwards (Hu et al. 2024, MiniCPM; the linear decay as in Hägele et al. 2024).

    Raises ValueError where warm-up and decay are longer than the run, or a rate is negative or not finite.
    """
    decay = _in_steps("decay_steps", decay_steps, steps)
    if decay < 1:
        raise ValueError(f"decay_steps must come to at least one step, but is {decay_steps} (of {steps})")
    warmup = _in_steps("warmup_steps", warmup_steps, steps)
    if warmup + decay > steps:
        raise ValueError(f"warmup_steps and decay_steps are {warmup + decay} steps together, more than steps={steps}")
    return _warmed_up(peak, steps, warmup, steps - warmup - decay, end, lambda fraction: 1.0 - fraction)


def piecewise(learning_rates: Mapping[int | float, float], steps: int | None = None) -> Schedule:
    """A constant rate from each boundary on: ``{0: 0.1, 0.5: 0.01, 0.75: 0.001}``.

    Args:
        learning_rates: boundary -> rate from there on; one boundary is 0. Whole numbers are steps, fractions parts of
            ``steps``.
        steps: length of the run; needed for fractions only.

    Raises ValueError where no boundary is 0, two are the same step, or a fraction comes without ``steps``.
    """
    rates = {}
    for boundary, rate in learning_rates.items():
        _check_rate(f"learning_rates[{boundary}]", rate)
        if steps is None and isinstance(boundary, float):
            raise ValueError(f"the boundary {boundary} is a fraction of the run: give steps, its length")
        rates[_in_steps("the boundary", boundary, steps or boundary + 1)] = rate
    if 0 not in rates or len(rates) < len(learning_rates):
        raise ValueError(
            f"learning_rates must begin at 0 with boundaries all different, but has {list(learning_rates)}"
        )
    boundaries = sorted(rates)

    def schedule(step: tf.Tensor) -> tf.Tensor:
        begun = tf.cast(step, tf.int64) >= tf.constant(boundaries, tf.int64)
        return tf.constant([rates[b] for b in boundaries], tf.float32)[tf.reduce_sum(tf.cast(begun, tf.int32)) - 1]

    return schedule


class Adjustable(tf.Module):
    """A rate that can be changed while training goes on: ``optimizer.learning_rate = 0.01``, in a hook for example.

    Attributes:
        rate: float32 variable.

    Raises ValueError where the rate is negative or not finite.
    """

    def __init__(self, learning_rate: float) -> None:
        super().__init__()
        _check_rate("learning_rate", learning_rate)
        self.rate = tf.Variable(learning_rate, dtype=tf.float32, trainable=False, name="rate")

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return self.rate.read_value()


class Plateau(Adjustable):
    """Lowers the rate when a metric has stopped getting better::

        rate = schedules.Plateau(0.1, "loss", factor=0.5, patience=2)
        update = trainers.Update(model, optimizers.Sgd(rate))
        trainers.Trainer(…, evaluate=…, evaluate_every=500, hooks=[("evaluate", rate.observe)])

    What it has seen is part of every checkpoint, so an interrupted run lowers its rate as an undisturbed one.

    Args:
        learning_rate: the rate at first.
        metric: a name that ``evaluate`` returns; with the hook at a period (``every(…)``) or "log", and
            ``kind="train"``, one of the step's.
        mode: "min" if lower is better, "max" if higher is.
        factor: by which the rate is multiplied.
        patience: after how many observations in a row that are no better than the best one.
        min_delta: how much better one must be to count.
        cooldown: how many observations after that don't count.
        lowest: the rate never falls below this.
        kind: "eval" or "train".

    Raises ValueError where an argument is out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        metric: str,
        *,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 0.0,
        cooldown: int = 0,
        lowest: float = 0.0,
        kind: str = "eval",
    ) -> None:
        super().__init__(learning_rate)
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', but is {mode!r}")
        if kind not in ("eval", "train"):
            raise ValueError(f"kind must be 'eval' or 'train', but is {kind!r}")
        if not 0 < factor < 1:
            raise ValueError(f"factor must be between 0 and 1, but is {factor}")
        if patience < 1 or cooldown < 0:
            raise ValueError(f"patience must be at least 1 and cooldown at least 0, but are {patience} and {cooldown}")
        _check_rate("min_delta", min_delta)
        _check_rate("lowest", lowest)
        self._metric, self._kind, self._sign = metric, kind, 1.0 if mode == "min" else -1.0
        self._factor, self._patience, self._min_delta = factor, patience, min_delta
        self._cooldown, self._lowest = cooldown, lowest
        self.best = tf.Variable(math.inf, dtype=tf.float64, trainable=False, name="best")
        self.waited = tf.Variable(0, dtype=tf.int64, trainable=False, name="waited")
        self.cooling = tf.Variable(0, dtype=tf.int64, trainable=False, name="cooling")

    def observe(self, trainer: Any) -> None:
        """The hook: looks at the latest value of the metric; one that isn't finite is no better than any.

        Raises:
            ValueError: there is no such metric.
        """
        line = trainer.last_metrics.get(self._kind, {})
        if self._metric not in line:
            names = sorted(line.keys() - {"kind", "step"})
            raise ValueError(f"Plateau: there is no {self._kind} metric {self._metric!r}, but {names}")
        value = line[self._metric]
        cost = math.inf if value is None or math.isnan(value) else self._sign * float(value)
        cooling, waited = int(self.cooling), int(self.waited) + 1
        if cost < float(self.best) - self._min_delta:
            self.best.assign(cost)
            waited = 0
        if cooling:
            self.cooling.assign(cooling - 1)
            waited = 0
        if waited >= self._patience:
            self.rate.assign(max(self._lowest, float(self.rate) * self._factor))
            self.cooling.assign(self._cooldown)
            waited = 0
        self.waited.assign(waited)


def _warmed_up(
    peak: float,
    steps: int,
    warmup_steps: int | float,
    stable_steps: int,
    end: float,
    shape: Callable[[tf.Tensor], tf.Tensor],
) -> Schedule:
    """``shape`` maps the finished fraction of the decay (0 to 1) to the share of ``peak - end`` that is left."""
    _check_rate("peak", peak)
    _check_rate("end", end)
    warmup = _in_steps("warmup_steps", warmup_steps, steps)
    decay_begins = warmup + stable_steps

    def schedule(step: tf.Tensor) -> tf.Tensor:
        now = tf.cast(step, tf.float32)
        fraction = tf.clip_by_value((now - decay_begins) / (steps - decay_begins), 0.0, 1.0)
        decayed = end + (peak - end) * shape(fraction)
        # Step 0 already moves: the ramp ends at step warmup - 1, and the decay begins at least one step later.
        rising = peak * (now + 1.0) / max(warmup, 1)
        return tf.where(now < warmup, rising, decayed)

    return schedule


def _in_steps(name: str, length: int | float, steps: int | float) -> int:
    """A number of steps as it is, a fraction (float) of ``steps`` in whole steps."""
    if isinstance(length, float):
        if not 0 <= length < 1:
            raise ValueError(f"{name} as a fraction of the run must be at least 0 and less than 1, but is {length}")
        return round(length * steps)
    if not 0 <= length < steps:
        raise ValueError(f"{name} must be at least 0 and less than steps={steps}, but is {length}")
    return length


def _check_rate(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number that is not negative, but is {value}")
