"""Ways to execute a step: eagerly, as a graph, compiled, or many steps per call."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.trainers.step import Step, step_key

KINDS = ("auto", "eager", "graph", "xla", "xla_chunk")

Metrics = dict[str, tf.Tensor]

# XLA's own threshold (xla_cpu_small_while_loop_byte_threshold) is 1024 by its own count of bytes.
_SMALL_LOOP_BYTES = 4096


class Call(NamedTuple):
    """The outcome of one call: ``steps`` steps from step number ``first`` on."""

    first: int
    steps: int
    metrics: Metrics
    """Scalars, or vectors of length ``steps`` when the call ran several. Reading one waits for the device."""


class Runner:
    """Executes a :class:`Step` over a data set.

    ======== =====================================================================================================
    kind     how a step runs
    ======== =====================================================================================================
    eager    operation by operation; Python breakpoints and prints work
    graph    one ``tf.function`` call per step
    xla      one compiled call per step
    xla_chunk ``steps_per_call`` stacked batches per compiled call; the rest that doesn't fill a call runs like ``xla``
    auto     ``xla_chunk`` if all batch shapes are static, else ``graph``; ``reason`` says why
    ======== =====================================================================================================

    ``xla_chunk`` gives bit for bit the weights and metrics of ``xla``. The loop over the steps is part of the XLA
    program, except for two sorts of steps which XLA's CPU compiler treats differently inside a loop; for them a
    TensorFlow loop calls the single-step program. One sort holds convolutions: only outside loops are they rewritten to
    fast kernels (inside, they run some twenty times slower and round differently). For these ``auto`` picks ``graph``,
    since TensorFlow's own CPU convolutions are faster than XLA's. The other sort touches less than a kilobyte: such a
    loop is compiled in one piece, which rounds differently.

    Args:
        step: the step; all its variables exist already.
        element_spec: a dict of ``tf.TensorSpec``, the spec of one batch.
        kind: one of the above.
        steps_per_call: how many steps one ``xla_chunk`` call makes.
        seed: from which, with the step's number, each step's key is derived.

    Raises:
        ValueError: unknown kind; a compiled kind with batch shapes that vary; variables that the step doesn't hold.
        TypeError: the step doesn't return a dict of scalars.
    """

    def __init__(
        self,
        step: Step,
        element_spec: Mapping[str, tf.TensorSpec],
        *,
        kind: str = "auto",
        steps_per_call: int = 100,
        seed: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"runner kind must be one of {', '.join(KINDS)}, but is {kind!r}")
        if steps_per_call < 1:
            raise ValueError(f"steps_per_call must be at least 1, but is {steps_per_call}")
        self._step = step
        self._seed = seed
        self._spec = dict(element_spec)
        obstacle = _obstacle_to_xla(self._spec)
        if kind in ("xla", "xla_chunk") and obstacle:
            raise ValueError(
                f"runner {kind!r} needs batches of one static shape, but {obstacle}; or use runner='graph'"
            )

        self.kind, self.reason = kind, "as asked"
        if kind != "eager":
            traced = tf.function(self._one).get_concrete_function(self._spec, tf.TensorSpec([], tf.int64))
            self._check_trace(traced)
            on_cpu = not any("GPU" in variable.device for variable in step.variables)
            convolves_on_cpu = on_cpu and any(node.op.startswith(("Conv", "DepthwiseConv")) for node in _nodes(traced))
            if kind == "auto":
                self.kind, self.reason = _choose(obstacle, convolves_on_cpu)
            if self.kind == "graph":
                self._call_one: Callable[..., Metrics] = traced
            else:
                compiled = tf.function(self._one, jit_compile=True)
                self._call_one = compiled.get_concrete_function(self._spec, tf.TensorSpec([], tf.int64))
                self._loop_outside_xla = convolves_on_cpu or (on_cpu and _bytes(step, self._spec) < _SMALL_LOOP_BYTES)
                self._metric_spec = {name: value.dtype for name, value in traced.structured_outputs.items()}
        else:
            self._call_one = self._one
        self.steps_per_call = steps_per_call if self.kind == "xla_chunk" else 1
        self._call_many: Callable[..., Metrics] | None = None

    def run(self, dataset_from: Callable[[int], tf.data.Dataset], start: int, stop: int) -> Iterator[Call]:
        """Run the steps ``start`` to ``stop - 1``, yielding after each call.

        Calls of several steps begin at multiples of ``steps_per_call``; the steps before and after run one by one.

        Args:
            dataset_from: step number -> data set of the batches for that step and the ones after it.
            start: number of the first step, counted from 0.
            stop: number of the step before which to stop.

        Raises:
            ValueError: the data ends too early.
        """
        size = self.steps_per_call
        if size == 1:
            yield from self._run_singly(dataset_from, start, stop)
            return
        first_aligned = min(-(-start // size) * size, stop)
        last_aligned = max(stop // size * size, first_aligned)
        yield from self._run_singly(dataset_from, start, first_aligned)
        yield from self._run_chunks(dataset_from, first_aligned, last_aligned)
        yield from self._run_singly(dataset_from, last_aligned, stop)

    def _run_singly(self, dataset_from: Callable[[int], tf.data.Dataset], start: int, stop: int) -> Iterator[Call]:
        if start == stop:
            return
        number = start
        for batch in dataset_from(start).take(stop - start):
            yield Call(number, 1, self._call_one(batch, tf.constant(number, tf.int64)))
            number += 1
        _check_complete(number, stop)

    def _run_chunks(self, dataset_from: Callable[[int], tf.data.Dataset], start: int, stop: int) -> Iterator[Call]:
        if start == stop:
            return
        if self._call_many is None:
            self._call_many = self._compile_many()
        size = self.steps_per_call
        number = start
        for batches in dataset_from(start).batch(size, drop_remainder=True).take((stop - start) // size).prefetch(1):
            yield Call(number, size, self._call_many(batches, tf.constant(number, tf.int64)))
            number += size
        _check_complete(number, stop)

    def _one(self, batch: Mapping[str, tf.Tensor], number: tf.Tensor) -> Metrics:
        metrics = self._step(batch, step_key(self._seed, number))
        return _checked_metrics(metrics)

    def _compile_many(self) -> Callable[..., Metrics]:
        """A function of ``steps_per_call`` stacked batches and the first step's number."""
        size = self.steps_per_call
        one = self._call_one if self._loop_outside_xla else self._one

        def many(batches: Mapping[str, tf.Tensor], first: tf.Tensor) -> Metrics:
            arrays = {name: tf.TensorArray(dtype, size, element_shape=[]) for name, dtype in self._metric_spec.items()}

            def body(i: tf.Tensor, arrays: dict[str, tf.TensorArray]) -> tuple[tf.Tensor, dict[str, tf.TensorArray]]:
                batch = {name: value[i] for name, value in batches.items()}
                metrics = one(batch, first + tf.cast(i, tf.int64))
                return i + 1, {name: arrays[name].write(i, value) for name, value in metrics.items()}

            _, arrays = tf.while_loop(
                lambda i, _: i < size, body, (tf.constant(0), arrays), parallel_iterations=1, maximum_iterations=size
            )
            return {name: array.stack() for name, array in arrays.items()}

        stacked = {name: tf.TensorSpec([size, *spec.shape], spec.dtype) for name, spec in self._spec.items()}
        function = tf.function(many, jit_compile=None if self._loop_outside_xla else True)
        return function.get_concrete_function(stacked, tf.TensorSpec([], tf.int64))

    def _check_trace(self, traced: Any) -> None:
        """Refuse what a checkpoint would lose silently, and warn of what it can't repeat."""
        held = {variable.ref() for variable in self._step.named_variables().values()}
        strangers = sorted({variable.name for variable in traced.graph.variables if variable.ref() not in held})
        if strangers:
            raise ValueError(
                f"the step uses variables that it doesn't hold, so no checkpoint would: {', '.join(strangers)}. "
                "Keep what owns them as an attribute of the step, and create them before training"
            )
        stateful = sorted({node.op for node in _nodes(traced) if _is_stateful_random(node.op)})
        if stateful:
            warnings.warn(
                f"the step draws from stateful random operations ({', '.join(stateful)}): a resumed run won't repeat "
                "them. Use stateless ones with the step's key, e.g. tf.nn.experimental.stateless_dropout(…, seed=key)",
                stacklevel=4,
            )


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


def _nodes(traced: Any) -> Iterator[Any]:
    definition = traced.graph.as_graph_def()
    yield from definition.node
    for function in definition.library.function:
        yield from function.node_def


def _bytes(step: Step, spec: Mapping[str, tf.TensorSpec]) -> int:
    """What one step reads at the least."""
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in (*step.variables, *spec.values()))


def _is_stateful_random(op: str) -> bool:
    return op in ("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle") or (
        op.startswith(("Stateful", "Rng")) and not op.startswith("StatefulPartitionedCall")
    )


def _checked_metrics(metrics: Any) -> Metrics:
    if not isinstance(metrics, Mapping):
        raise TypeError(f"a step must return a dict of scalar tensors, but returned {type(metrics).__name__}")
    checked = {name: tf.convert_to_tensor(value) for name, value in metrics.items()}
    for name, value in checked.items():
        if value.shape.rank != 0:
            raise TypeError(f"a step's metrics must be scalars, but {name!r} has shape {value.shape}")
    return checked


def _check_complete(number: int, stop: int) -> None:
    if number < stop:
        raise ValueError(f"the data ended after step {number}, but training goes on to step {stop}")
