"""Executing a step on the workers of parameter servers, each on whatever weights it finds there."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.runners.checks import check_trace, check_trained, own_error_first, same_variables
from tftoolkit.trainers.runners.feed import Feed
from tftoolkit.trainers.runners.runner import (
    KINDS,
    SECONDS_PER_CALL,
    STACK_BYTES,
    Call,
    Metrics,
    checked_metrics,
    size_in_bytes,
)
from tftoolkit.trainers.runners.state_guard import StateGuard
from tftoolkit.trainers.step import Step, step_key
from tftoolkit.trainers.update.divergence import DivergenceWatch
from tftoolkit.trainers.update.keras_adapter import KerasOptimizer

_CLOSURES_PER_WORKER = 4  # in a call, so that nobody waits long for the last one
_FETCHES = 5  # how often a closure is run again because its worker died with the metrics

Closure = tuple[Any, int]
"""Batches, stacked or a single one, and the number of the first step."""


class AsynchronousRunner:
    """Executes a :class:`Step` under ``ParameterServerStrategy``; it takes the place of a :class:`Runner`.

    The chief reads the batches, in order, and hands them out in closures of some batches each; a worker loops over the
    batches of a closure as a TensorFlow graph. A call ends when all of its closures are finished, so between two calls
    nobody changes a variable, and it is as long as a :class:`Runner`'s: about a second. Where batch shapes vary, each
    closure is one batch.

    A closure whose worker dies is run again by another one, from its first batch on: its batches may count twice, but
    none is lost.

    Args:
        step: the step; all its variables exist already, on the parameter servers.
        element_spec: a dict of ``tf.TensorSpec``, the spec of one batch.
        strategy: that of the step's variables.
        kind: "graph" or "auto", which is the same here.
        steps_per_call: the most steps that one call makes; fewer if so many batches exceed 256 MiB.
        seed: from which, with the step's number, each step's key is derived.
        watch: notes divergence as part of each step.

    Attributes:
        workers: how many there are.
        kind, reason: always "graph", and why.
        steps_per_call: the most steps of a call.
        graph: the ``tf.Graph`` of one step.

    Raises:
        ValueError: another kind; several GPUs per worker; variables that the step doesn't hold.
        TypeError: an optimizer of Keras; a step that doesn't return a dict of scalars; batches with ragged tensors.
    """

    def __init__(
        self,
        step: Step,
        element_spec: Mapping[str, Any],
        strategy: tf.distribute.Strategy,
        *,
        kind: str = "auto",
        steps_per_call: int = 100,
        seed: int = 0,
        watch: DivergenceWatch | None = None,
    ) -> None:
        _check_kind(kind)
        if steps_per_call < 1:
            raise ValueError(f"steps_per_call must be at least 1, but is {steps_per_call}")
        _check_step(step, element_spec, strategy)
        self._step = step
        check_trained(step)
        self._guarded = StateGuard(step)
        self._seed = seed
        self._watch = watch
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self.workers = tf.distribute.cluster_resolver.TFConfigClusterResolver().cluster_spec().num_tasks("worker")
        self.kind, self.reason = "graph", f"asynchronous, {self.workers} workers"
        spec, number = dict(element_spec), tf.TensorSpec([], tf.int64)
        inputs = list(spec.values())
        self._stacks = all(tensor.shape.is_fully_defined() for tensor in inputs)
        size = size_in_bytes(inputs) if self._stacks else 0
        self.steps_per_call = max(1, min(steps_per_call, STACK_BYTES // max(1, size)))
        self._length = min(self.workers, self.steps_per_call)  # of the next call
        with strategy.scope():
            with same_variables(step), own_error_first():
                one = tf.function(self._one, autograph=False).get_concrete_function(spec, number)
            check_trace(one, step, watch)
            self.graph: tf.Graph = one.graph
            self._closure = one
            if self._stacks:
                self._dtypes = {name: value.dtype for name, value in one.structured_outputs.items()}
                stacked = {name: tf.TensorSpec([None, *tensor.shape], tensor.dtype) for name, tensor in spec.items()}
                self._closure = tf.function(self._many, autograph=False).get_concrete_function(stacked, number)

    def feed(self, pipeline: Any, position: int = 0) -> Feed:
        """The batches of ``pipeline`` from ``position`` on, in the form that :meth:`call` takes."""
        return Feed(pipeline, position, self.steps_per_call if self._stacks else 0)

    def call(self, feed: Feed, first: int, limit: int) -> Call:
        """Run some steps, at least one and at most ``limit``; ``first`` is the number of the first, counted from 0.

        Raises:
            ValueError: the data has ended.
            SourceError: an example can't be read.
            UnavailableError: of ``tf.errors``: a parameter server is gone, and its variables with it.
        """
        length = min(limit, self._length)
        closures = self._closures(feed, first, length)
        begin = time.perf_counter()
        found = self._run(closures)
        seconds = time.perf_counter() - begin
        metrics = {name: np.concatenate([part[name].reshape(-1) for part in found]) for name in found[0]}
        steps = len(next(iter(metrics.values()))) if metrics else length
        if seconds > 2 * SECONDS_PER_CALL:
            self._length = max(1, self._length // 2)
        elif seconds * 2 < SECONDS_PER_CALL and steps == self._length:
            self._length = min(2 * self._length, self.steps_per_call)
        return Call(first, steps, {name: tf.constant(value) for name, value in metrics.items()})

    def flops_per_step(self) -> None:
        """Not counted under a strategy."""

    def _closures(self, feed: Feed, first: int, length: int) -> list[Closure]:
        """The next batches, ``length`` of them or as many as lie in the present stack."""
        if not self._stacks:
            return [(feed.take(1).batches, first + i) for i in range(length)]
        portion = feed.take(length)
        size = math.ceil(portion.count / (_CLOSURES_PER_WORKER * self.workers))
        return [
            (
                {name: value[portion.offset + begin : portion.offset + end] for name, value in portion.batches.items()},
                first + begin,
            )
            for begin in range(0, portion.count, size)
            for end in [min(begin + size, portion.count)]
        ]

    def _run(self, closures: Sequence[Closure]) -> list[dict[str, np.ndarray]]:
        """Their metrics. A worker can die between a closure and the reading of its metrics: it is run again then."""
        found: dict[int, dict[str, np.ndarray]] = {}
        for attempt in range(_FETCHES):
            values = {
                i: self._coordinator.schedule(self._closure, args=(batches, tf.constant(first, tf.int64)))
                for i, (batches, first) in enumerate(closures)
                if i not in found
            }
            self._coordinator.join()
            for i, value in values.items():
                try:
                    found[i] = value.fetch()
                except tf.errors.OpError:
                    if attempt == _FETCHES - 1:
                        raise
            if len(found) == len(closures):
                break
        return [found[i] for i in range(len(closures))]

    def _one(self, batch: Mapping[str, tf.Tensor], number: tf.Tensor) -> Metrics:
        metrics = checked_metrics(self._guarded(batch, step_key(self._seed, number)))
        if self._watch is not None:
            self._watch.note(number)
        return metrics

    def _many(self, batches: Mapping[str, tf.Tensor], first: tf.Tensor) -> Metrics:
        count = tf.shape(next(iter(batches.values())))[0]
        arrays = {name: tf.TensorArray(dtype, count, element_shape=[]) for name, dtype in self._dtypes.items()}

        def body(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
            batch = {name: tf.gather(value, i) for name, value in batches.items()}
            metrics = self._one(batch, first + tf.cast(i, tf.int64))
            return i + 1, {name: arrays[name].write(i, value) for name, value in metrics.items()}

        _, arrays = tf.while_loop(lambda i, _: i < count, body, (tf.constant(0), arrays), parallel_iterations=1)
        return {name: array.stack() for name, array in arrays.items()}


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"runner kind must be one of {', '.join(KINDS)}, but is {kind!r}")
    if kind == "eager":
        raise ValueError("runner 'eager' can't run on other machines: debug without parameter servers, or use 'graph'")
    if kind.startswith("xla"):
        raise ValueError(f"runner {kind!r}: XLA programs can't reach variables on parameter servers: use 'graph'")


def _check_step(step: Step, element_spec: Mapping[str, Any], strategy: tf.distribute.Strategy) -> None:
    if strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"each worker has {strategy.num_replicas_in_sync} GPUs, but can use one: start a worker per GPU, each with "
            "its own CUDA_VISIBLE_DEVICES"
        )
    for name, tensor in element_spec.items():
        if not isinstance(tensor, tf.TensorSpec):
            raise TypeError(f"parameter servers: batches must be dense tensors, but {name!r} is a {tensor!r}: pad it")
    for module in step.submodules:
        if isinstance(module, KerasOptimizer):
            raise TypeError(
                "parameter servers: an optimizer of Keras overwrites what other workers wrote meanwhile: use "
                "trainers.optimizers.AdamW or Sgd"
            )
