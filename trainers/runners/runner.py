"""Ways to execute a step: eagerly, as a graph, compiled, or many steps per call."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.trainers.distribution.replicas import Replica, Workers
from tftoolkit.trainers.runners import flops
from tftoolkit.trainers.runners.checks import check_trace, check_trained, nodes, own_error_first, same_variables
from tftoolkit.trainers.runners.feed import Feed
from tftoolkit.trainers.runners.state_guard import StateGuard
from tftoolkit.trainers.step import Step, step_key
from tftoolkit.trainers.update.divergence import DivergenceWatch
from tftoolkit.trainers.update.update import Update

KINDS = ("auto", "eager", "graph", "xla", "xla_chunk")

Metrics = dict[str, tf.Tensor]

# XLA's own threshold (xla_cpu_small_while_loop_byte_threshold) is 1024 by its own count of bytes.
_SMALL_LOOP_BYTES = 4096
STACK_BYTES = 256 << 20
SECONDS_PER_CALL = 1.0


class Call(NamedTuple):
    """The outcome of one call: ``steps`` steps from step number ``first`` on."""

    first: int
    steps: int
    metrics: Metrics
    """Scalars, or vectors of which the first ``steps`` elements count. Reading one waits for the device."""

    def values(self) -> dict[str, np.ndarray]:
        """The metrics as vectors of length ``steps``."""
        return {name: value.numpy().reshape(-1)[: self.steps] for name, value in self.metrics.items()}


class Runner:
    """Executes a :class:`Step` over the batches of a pipeline.

    ========= ====================================================================================================
    kind      how a step runs
    ========= ====================================================================================================
    eager     operation by operation; Python breakpoints and prints work
    graph     one ``tf.function`` call per step
    xla       one compiled call per step
    xla_chunk up to ``steps_per_call`` steps over stacked batches per compiled call
    auto      ``xla_chunk`` if all batch shapes are static, else ``graph``; ``reason`` says why
    ========= ====================================================================================================

    ``xla_chunk`` gives bit for bit the weights and metrics of ``xla``, and there is one program for any number of steps
    in a call, so it doesn't matter where calls begin and end. The loop over the steps is part of the XLA program,
    except for two sorts of steps which XLA's CPU compiler treats differently inside a loop; for them a TensorFlow loop
    calls the single-step program. One sort holds convolutions: only outside loops are they rewritten to fast kernels
    (inside, they run some twenty times slower and round differently). For these ``auto`` picks ``graph``, since
    TensorFlow's own CPU convolutions are faster than XLA's. The other sort touches less than a kilobyte: such a loop is
    compiled in one piece, which rounds differently.

    Calls grow from one step to what takes about a second, so that signals and clocks are looked at often enough.

    Under a ``tf.distribute`` strategy each replica runs the step on its rows of the batch (``Pipeline.shard``), and the
    metrics are those of the first. XLA programs can't communicate: ``xla`` and ``xla_chunk`` compile what an ``Update``
    does before and after its sums over the replicas, and the steps of a call run in a TensorFlow loop.

    Args:
        step: the step; all its variables exist already.
        element_spec: a dict of ``tf.TensorSpec``, the spec of one batch; with ``workers`` a tuple, each replica's own.
        kind: one of the above.
        steps_per_call: the most steps that one ``xla_chunk`` call makes; fewer if so many batches exceed 256 MiB.
        seed: from which, with the step's number, each step's key is derived.
        watch: notes divergence as part of each step.
        workers: those of the strategy that the step's variables belong to, if any.

    Attributes:
        steps_per_call: the most steps of a call; 1 unless the kind is ``xla_chunk``.
        graph: the ``tf.Graph`` of one step; None if the kind is eager.

    Raises:
        ValueError: unknown kind; a compiled kind with batch shapes that vary; variables that the step doesn't hold, or
            makes itself; layers frozen or unfrozen since the step's ``Update`` was made.
        TypeError: the step doesn't return a dict of scalars.
    """

    def __init__(
        self,
        step: Step,
        element_spec: Any,
        *,
        kind: str = "auto",
        steps_per_call: int = 100,
        seed: int = 0,
        watch: DivergenceWatch | None = None,
        workers: Workers | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"runner kind must be one of {', '.join(KINDS)}, but is {kind!r}")
        if steps_per_call < 1:
            raise ValueError(f"steps_per_call must be at least 1, but is {steps_per_call}")
        self._step = step
        check_trained(step)
        self._guarded = StateGuard(step)
        self._seed = seed
        self._watch = watch
        self._workers = workers or Workers(None)
        # Without a strategy there is one share, and it goes without the tuple.
        self._specs = [dict(spec) for spec in (element_spec if workers else [element_spec])]
        self._spec = tuple(self._specs) if workers else self._specs[0]
        self._updates = [module for module in step.submodules if isinstance(module, Update)]
        self._length = 1  # of the next call
        obstacle = next(filter(None, map(_obstacle_to_xla, self._specs)), None)
        if kind in ("xla", "xla_chunk") and obstacle:
            raise ValueError(
                f"runner {kind!r} needs batches of one static shape, but {obstacle}; or use runner='graph'"
            )
        self.kind, self.reason, self.steps_per_call = kind, "as asked", 1
        self.graph: tf.Graph | None = None
        self._whole = self._workers.strategy is None  # whether a whole step can be one XLA program
        self._call: Callable[..., Metrics] = self._first_call
        if kind != "eager":
            self._compile(obstacle, steps_per_call)

    def _compile(self, obstacle: str | None, steps_per_call: int) -> None:
        number = tf.TensorSpec([], tf.int64)
        self._compiled = tf.function(self._one, jit_compile=True if self._whole else None)
        with same_variables(self._step), own_error_first():
            one = self._compiled.get_concrete_function(self._spec, number)  # traced; compiled when it is first called
        check_trace(one, self._step, self._watch)
        self.graph = one.graph
        on_cpu = not any("GPU" in variable.device for variable in self._step.variables)
        convolves_on_cpu = on_cpu and any(node.op.startswith(("Conv", "DepthwiseConv")) for node in nodes(one))
        if self.kind == "auto":
            self.kind, self.reason = _choose(obstacle, convolves_on_cpu)
        if self.kind == "graph":
            self._call = tf.function(self._one).get_concrete_function(self._spec, number) if self._whole else one
            return
        if not self._whole:
            for update in self._updates:
                update.compile_parts = True
            one = tf.function(self._one).get_concrete_function(self._spec, number)
        if self.kind == "xla":
            self._call = one
            return
        inputs = tf.nest.flatten(self._spec)
        self.steps_per_call = max(1, min(steps_per_call, STACK_BYTES // max(1, size_in_bytes(inputs))))
        small = on_cpu and size_in_bytes((*self._step.variables, *inputs)) < _SMALL_LOOP_BYTES
        loop_outside_xla = not self._whole or convolves_on_cpu or small
        dtypes = {name: value.dtype for name, value in one.structured_outputs.items()}
        # A function that runs replicas can't be called from another one, but its code can be traced into it.
        called = one if self._whole and loop_outside_xla else self._one
        self._call = self._compile_many(called, dtypes, jit=not loop_outside_xla)

    def feed(self, pipeline: Any, position: int = 0) -> Feed:
        """The batches of ``pipeline`` from ``position`` on, in the form that :meth:`call` takes."""
        stack = self.steps_per_call if self.kind == "xla_chunk" else 0
        if self._workers.strategy is None:
            return Feed(pipeline, position, stack)
        return Feed(pipeline, position, stack, self._workers.replicas, self._workers.replica_count)

    def call(self, feed: Feed, first: int, limit: int) -> Call:
        """Run some steps, at least one and at most ``limit``; ``first`` is the number of the first, counted from 0.

        Raises:
            ValueError: the data has ended.
            SourceError: an example can't be read.
        """
        portion = feed.take(min(limit, self._length))
        number = tf.constant(first, tf.int64)
        if self.kind != "xla_chunk":
            return Call(first, 1, self._call(portion.batches, number))
        begin = time.perf_counter()
        metrics = self._call(portion.batches, tf.constant(portion.offset), tf.constant(portion.count), number)
        next(iter(metrics.values()), number).numpy()  # wait, to know the time
        seconds = time.perf_counter() - begin
        long, not_short = self._workers.any([seconds > 2 * SECONDS_PER_CALL, seconds * 2 >= SECONDS_PER_CALL])
        if long:
            self._length = max(1, self._length // 2)
        elif not not_short and portion.count == self._length:
            self._length = min(2 * self._length, self.steps_per_call)
        return Call(first, portion.count, metrics)

    @functools.cache  # noqa: B019 (a runner lives as long as its trainer)
    def flops_per_step(self) -> int | None:
        """See ``flops.count``; None where batch shapes vary, or the step runs eagerly or under a strategy."""
        if self.kind == "eager" or not self._whole or _obstacle_to_xla(self._specs[0]):
            return None
        return flops.count(self._compiled, self._spec, tf.TensorSpec([], tf.int64))

    def _first_call(self, batch: Any, number: tf.Tensor) -> Metrics:
        with same_variables(self._step):
            metrics = self._one(batch, number)
        self._call = self._one
        return metrics

    def _one(self, batch: Any, number: tf.Tensor) -> Metrics:
        strategy, workers = self._workers.strategy, self._workers
        if strategy is None:
            return self._replica(batch, number)

        def replica() -> Metrics:
            return self._replica(batch[Replica.current().index - workers.replicas.start], number)

        metrics = strategy.run(replica)
        return {name: strategy.experimental_local_results(value)[0] for name, value in metrics.items()}

    def _replica(self, batch: Mapping[str, tf.Tensor], number: tf.Tensor) -> Metrics:
        metrics = checked_metrics(self._guarded(batch, step_key(self._seed, number)))
        if self._watch is not None:
            self._watch.note(number)
        return metrics

    def _compile_many(
        self, one: Callable[..., Metrics], dtypes: Mapping[str, tf.DType], *, jit: bool
    ) -> Callable[..., Metrics]:
        """A function of a stack, the first batch's place in it, the number of steps, and the first step's number."""
        size = self.steps_per_call

        def many(batches: Any, offset: tf.Tensor, count: tf.Tensor, first: tf.Tensor) -> Metrics:
            arrays = {name: tf.TensorArray(dtype, size, element_shape=[]) for name, dtype in dtypes.items()}

            def body(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
                batch = tf.nest.map_structure(lambda value: tf.gather(value, offset + i), batches)
                metrics = one(batch, first + tf.cast(i, tf.int64))
                return i + 1, {name: arrays[name].write(i, value) for name, value in metrics.items()}

            _, arrays = tf.while_loop(lambda i, _: i < count, body, (tf.constant(0), arrays), parallel_iterations=1)
            return {name: array.stack() for name, array in arrays.items()}

        stacked = tf.nest.map_structure(lambda spec: tf.TensorSpec([size, *spec.shape], spec.dtype), self._spec)
        scalar = tf.TensorSpec([], tf.int32)
        function = tf.function(many, jit_compile=True if jit else None)
        return function.get_concrete_function(stacked, scalar, scalar, tf.TensorSpec([], tf.int64))


def _choose(obstacle: str | None, convolves_on_cpu: bool) -> tuple[str, str]:
    """The kind that ``auto`` stands for, and why."""
    if obstacle:
        return "graph", obstacle
    if convolves_on_cpu:
        return "graph", "TensorFlow's convolutions on a CPU are faster than XLA's"
    return "xla_chunk", "all batches have one static shape"


def _obstacle_to_xla(spec: Mapping[str, tf.TensorSpec]) -> str | None:
    """Why batches of this spec can't be compiled for, or None."""
    for name, tensor in spec.items():
        if not isinstance(tensor, tf.TensorSpec):
            return f"{name!r} is a {type(tensor).__name__}, which XLA doesn't know"
        if tensor.dtype in (tf.string, tf.variant):
            return f"{name!r} holds {tensor.dtype.name}, which XLA doesn't know"
        if not tensor.shape.is_fully_defined():
            return f"{name!r} has shape {tensor.shape}: batch with drop_remainder=True"
    return None


def size_in_bytes(tensors: Iterable[tf.Variable | tf.TensorSpec]) -> int:
    return sum((tensor.shape.num_elements() or 0) * tensor.dtype.size for tensor in tensors)  # or 0: not known


def checked_metrics(metrics: Any) -> Metrics:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"a step must return a dict of scalar tensors, but returned {type(metrics).__name__}")
    checked = {name: tf.convert_to_tensor(value) for name, value in metrics.items()}
    for name, value in checked.items():
        if value.shape.rank != 0:
            raise TypeError(f"a step's metrics must be scalars, but {name!r} has shape {value.shape}")
    return checked
