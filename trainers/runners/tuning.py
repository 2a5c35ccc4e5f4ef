"""Finding a learning rate and a batch size before training. Everything is left as it was."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.pipelines import Pipeline
from tftoolkit.trainers.distribution.replicas import strategy_of
from tftoolkit.trainers.runners.memory import peak_memory
from tftoolkit.trainers.runners.runner import Runner
from tftoolkit.trainers.step import Step
from tftoolkit.trainers.update.update import Update

_SMOOTHING_STEPS = 10


class LearningRates(NamedTuple):
    """The outcome of :func:`find_lr`."""

    suggestion: float
    """Where the smoothed loss falls fastest per decade, after its first ten steps; a schedule's peak, or a constant."""
    learning_rates: np.ndarray
    losses: np.ndarray
    """Smoothed, one for each learning rate, up to where the loss ran away."""


class BatchSize(NamedTuple):
    """One row of what :func:`find_batch_size` tried."""

    batch_size: int
    examples_per_second: float
    """0 if there was no room for it."""
    peak_memory_bytes: int


def find_lr(
    step: Step,
    pipeline: Pipeline,
    *,
    low: float = 1e-7,
    high: float = 1.0,
    steps: int = 100,
    runner: str = "auto",
    loss: str = "loss",
    seed: int = 0,
) -> LearningRates:
    """Train ``steps`` steps while the learning rate grows from ``low`` to ``high`` (Smith 2017, section 3.3).

    The loss is smoothed as an exponential mean over about ten steps; the sweep ends when it exceeds four times its
    minimum. The step's variables and the pipeline's position are as before afterwards, also after an error.

    Args:
        step: with one ``Update``.
        pipeline: yields the batches.
        low, high: the ends of the sweep.
        steps: how many learning rates to try.
        runner: see :class:`tftoolkit.trainers.Runner`.
        loss: the name of the metric to look at.
        seed: from which each step's key is derived.

    Raises:
        ValueError: a number out of range, no such metric, no loss was finite, not exactly one ``Update``, or the step
            belongs to a strategy.
    """
    _check_alone("find_lr", step)
    if not 0 < low < high < math.inf:
        raise ValueError(f"find_lr needs 0 < low < high, but got low={low}, high={high}")
    if steps < 10:
        raise ValueError(f"find_lr: steps must be at least 10, but is {steps}")
    rates = np.geomspace(low, high, steps)
    with _restored(step):
        losses = _sweep(step, pipeline, rates, runner, loss, seed)
    if len(losses) < 3:
        raise ValueError(f"find_lr: the loss ran away at once; lower low={low}, or look for NaN in the data")
    slopes = np.gradient(losses, np.log10(rates[: len(losses)]))
    begin = min(_SMOOTHING_STEPS, len(losses) // 2)  # before, the mean is over too few losses
    return LearningRates(float(rates[begin + int(np.argmin(slopes[begin:]))]), rates[: len(losses)], losses)


def find_batch_size(
    step: Step,
    pipeline: Callable[[int], Pipeline],
    *,
    first: int = 8,
    most: int = 4096,
    gain: float = 1.1,
    runner: str = "auto",
    seconds: float = 1.0,
) -> list[BatchSize]:
    """Double the batch size until memory runs out or an example no longer gets cheaper.

    Args:
        step: a step; its variables are as before afterwards.
        pipeline: batch size -> a pipeline; with ``drop_remainder`` if the runner compiles.
        first, most: the smallest and largest batch size to try.
        gain: how many times as many examples per second a doubled batch must bring to be worth it.
        runner: see :class:`tftoolkit.trainers.Runner`.
        seconds: how long to measure each batch size, besides its compilation.

    Returns:
        What was tried, in ascending order. The one to take has the most examples per second.

    Raises:
        ValueError: a number out of range, or the step belongs to a strategy.
    """
    _check_alone("find_batch_size", step)
    if not 1 <= first <= most:
        raise ValueError(f"find_batch_size needs 1 <= first <= most, but got first={first}, most={most}")
    if gain < 1:
        raise ValueError(f"find_batch_size: gain must be at least 1, but is {gain}")
    tried: list[BatchSize] = []
    size = first
    while size <= most:
        with _restored(step):
            tried.append(_measure(step, pipeline(size), size, runner, seconds))
        if len(tried) > 1 and tried[-1].examples_per_second < gain * tried[-2].examples_per_second:
            break
        size *= 2
    return tried


def _check_alone(name: str, step: Step) -> None:
    strategy = strategy_of(step.named_variables())
    if strategy is not None:
        raise ValueError(
            f"{name} is for one process with one device, but the step's variables belong to a "
            f"{type(strategy).__name__}: make the step outside of its scope to look for good settings"
        )


def _sweep(step: Step, pipeline: Pipeline, rates: np.ndarray, kind: str, loss: str, seed: int) -> np.ndarray:
    with _learning_rate(step, rates):
        runner = Runner(step, pipeline.element_spec, kind=kind, seed=seed)
        feed = runner.feed(pipeline, pipeline.position)
        mean, smoothed, done = 0.0, [], 0
        while done < len(rates):
            call = runner.call(feed, done, len(rates) - done)
            values = call.values()
            if loss not in values:
                raise ValueError(f"find_lr: the step has no metric {loss!r}, but {sorted(values)}")
            for value in values[loss]:
                done += 1
                mean = 0.9 * mean + 0.1 * float(value)
                smoothed.append(mean / (1 - 0.9**done))  # Adam's correction for the start from zero
                if not math.isfinite(smoothed[-1]) or smoothed[-1] > 4 * abs(min(smoothed)):
                    return np.array(smoothed[:-1])
    return np.array(smoothed)


@contextlib.contextmanager
def _learning_rate(step: Step, rates: np.ndarray) -> Iterator[None]:
    """Let the step's optimizer use ``rates``, one after the other, from its present iteration on."""
    updates = [module for module in step.submodules if isinstance(module, Update)]
    if len(updates) != 1:
        raise ValueError(f"find_lr needs a step with one Update, but this has {len(updates)}")
    optimizer = updates[0].optimizer
    begin = int(optimizer.iterations.numpy())
    first, ratio = float(rates[0]), float(math.log(rates[-1] / rates[0]) / (len(rates) - 1))
    with optimizer.following(lambda done: first * tf.exp(ratio * tf.cast(done - begin, tf.float32))):
        yield


def _measure(step: Step, pipeline: Pipeline, size: int, kind: str, seconds: float) -> BatchSize:
    try:
        runner = Runner(step, pipeline.element_spec, kind=kind)
        feed = runner.feed(pipeline, pipeline.position)
        done = runner.call(feed, 0, 1).steps  # compiles
        first, begin = done, time.perf_counter()
        while done == first or time.perf_counter() - begin < seconds:
            call = runner.call(feed, done, 1 << 30)
            done += call.steps
        call.values()  # waits for the device
        rate = (done - first) * size / (time.perf_counter() - begin)
    except (tf.errors.ResourceExhaustedError, MemoryError):
        rate = 0.0
    return BatchSize(size, rate, peak_memory())


@contextlib.contextmanager
def _restored(step: Step) -> Iterator[None]:
    """Give all variables their values back."""
    values = {name: np.array(variable.numpy()) for name, variable in step.named_variables().items()}
    try:
        yield
    finally:
        for name, variable in step.named_variables().items():
            variable.assign(values[name])
