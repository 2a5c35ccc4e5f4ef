"""The op under check, with everything that several checks need, computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.emulation import twins
from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.opcheck import cases, child, compare, graphs
from tftoolkit.custom_ops.opcheck.cases import Case
from tftoolkit.custom_ops.opcheck.compare import Right
from tftoolkit.custom_ops.opcheck.graphs import Array, Graph, Program, as_array, in_float64, is_inexact, single, wide
from tftoolkit.custom_ops.opcheck.report import Skipped
from tftoolkit.custom_ops.opcheck.worker import Guards

REPEATS, THREADS = 24, 4  # how often, and by how many at once, a kernel is run to see whether its result varies
_EMULATED_REPEATS = 2  # whose races are found by other means

# Each derivative is a chain of roundings of its own, of another shape in op and reference.
_ROUNDINGS = (1, 4, 16)

_PLAIN: Guards = (0x5A, 0x5A, -1)
# As floats: a large number, a large negative one, NaN. The first run is the one the others are compared with.
GUARDS: dict[str, list[Guards]] = {
    "output": [_PLAIN, (0xDA, 0x5A, -1), (0xFF, 0x5A, -1)],
    "around": [_PLAIN, (0x5A, 0xDA, -1), (0x5A, 0xFF, -1)],
}


@dataclass(frozen=True)
class Probe:
    """A case run in the worker process: results for each guard pattern, or what went wrong there."""

    results: Mapping[str, Sequence[Sequence[Array | None]]]
    error: str = ""
    died: bool = False


def with_gradients(function: Program, inputs: int) -> Program:
    """(inputs, output gradients) → gradients of the differentiable inputs."""

    def run(*flat: tf.Tensor) -> list[tf.Tensor | None]:
        floating = [tensor for tensor in flat[:inputs] if is_inexact(tensor.dtype)]
        with tf.GradientTape() as tape:
            tape.watch(floating)
            outputs = function(*flat[:inputs])
            targets = [output for output in outputs if is_inexact(output.dtype)]
        # A reference may return float32 whatever it was given.
        upstream = [tf.cast(one, target.dtype) for one, target in zip(flat[inputs:], targets, strict=True)]
        return list(tape.gradient(targets, floating, output_gradients=upstream))

    return run


def second_derivatives(function: Program, inputs: int) -> Program:
    """(inputs, output gradients) → gradients of both, of a weighted sum of the first gradients."""

    def run(*flat: tf.Tensor) -> list[tf.Tensor | None]:
        floating = [tensor for tensor in flat if is_inexact(tensor.dtype)]
        with tf.GradientTape() as tape:
            tape.watch(floating)
            first = [tf.convert_to_tensor(one) for one in with_gradients(function, inputs)(*flat) if one is not None]
        weights = [tf.reshape(tf.cast(tf.cos(0.7 * tf.range(tf.size(one), dtype=tf.float64)), one.dtype), tf.shape(one))
                   for one in first]  # fmt: skip
        return list(tape.gradient(first, floating, output_gradients=weights))

    return run


class Subject:
    """An op with the call that the user gave.

    Attributes:
      given: that call.
      gradient_error: what tracing its gradient raised, or None.
      repeats: how often the kernel is run, alone and again by several threads, to see whether its result varies.
    """

    def __init__(self, op: Op, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> None:
        self.op = op
        self.given = cases.given(op, inputs, attributes)
        self.gradient_error: Exception | None = None
        self.repeats = _EMULATED_REPEATS if twins.is_emulated(op) else REPEATS
        self._programs: dict[Any, Graph] = {}
        self._exact: dict[Any, Callable[[Sequence[Array]], list[Array | None]] | str] = {}

    # Cases: lists are made once, since results are remembered for each case

    @functools.cached_property
    def dtypes(self) -> list[Case]:
        return list(cases.other_dtypes(self.op, self.given))

    @functools.cached_property
    def variants(self) -> list[Case]:
        """Other attributes, and optional inputs left out."""
        return [*cases.other_attributes(self.op, self.given), *cases.absent_inputs(self.op, self.given)]

    @functools.cached_property
    def sizes(self) -> list[Case]:
        return list(cases.other_sizes(self.op, self.given))

    @functools.cached_property
    def ranks(self) -> list[Case]:
        return list(cases.other_ranks(self.op, self.given))

    @functools.cached_property
    def empties(self) -> list[Case]:
        return list(cases.empty_sizes(self.op, self.given))

    @functools.cached_property
    def outputs(self) -> list[str]:
        return [name for name, _ in cases.output_dtypes(self.op, self.given)]

    def differentiable(self, case: Case) -> bool:
        """Whether there is something to differentiate."""
        dtypes = [dtype for _, dtype in cases.output_dtypes(self.op, case)]
        return bool(self.floating_inputs(case)) and any(map(is_inexact, dtypes))

    def floating_inputs(self, case: Case) -> list[str]:
        names = cases.input_names(self.op, case)
        return [name for name, array in zip(names, case.flat, strict=True) if is_inexact(array.dtype)]

    def orders(self, case: Case) -> tuple[int, ...]:
        """0 (values), and 1 where there is something to differentiate."""
        return (0, 1) if self.has_gradient and self.differentiable(case) else (0,)

    def result_names(self, case: Case, order: int) -> list[str]:
        """What the results are called."""
        return self.outputs if order == 0 else [f"the gradient of {name}" for name in self.floating_inputs(case)]

    # Running the op

    @functools.cached_property
    def has_gradient(self) -> bool:
        """Whether a gradient was declared and can be traced for the given call; ``gradient_error`` says why not."""
        if self.op.gradient_function is None:
            return False
        try:
            self.trace(self.given, 1)
        except Exception as error:
            self.gradient_error = error
            return False
        return True

    def function(self, case: Case, order: int = 0) -> Program:
        """The op from flat inputs to outputs; order 1 (and 2): from inputs and output gradients to derivatives."""
        return _derivative(case.function(self.op, self.op), case, order)

    @functools.cache  # noqa: B019 (lives as long as the subject)
    def arrays(self, case: Case, order: int) -> list[Array]:
        """What ``function`` takes: the inputs and, for derivatives, random output gradients."""
        if order == 0:
            return case.flat
        rng = np.random.default_rng(1)
        shapes = cases.shapes_of_outputs(self.op, case)
        dtypes = [tf.dtypes.as_dtype(dtype) for _, dtype in cases.output_dtypes(self.op, case)]
        gradients = [
            np.asarray(rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype.is_complex else 0))
            .astype(dtype.as_numpy_dtype)
            for shape, dtype in zip(shapes, dtypes, strict=True) if is_inexact(dtype)
        ]  # fmt: skip
        return [*case.flat, *gradients]

    def trace(self, case: Case, order: int) -> Graph:
        """``function`` as a graph, once for all sizes. Raises what the gradient function raises."""
        key = case.kind, order
        if key not in self._programs:
            self._programs[key] = graphs.trace(self.function(case, order), self.arrays(case, order))
        return self._programs[key]

    @functools.cache  # noqa: B019
    def probe(self, case: Case, order: int = 0, jit: bool = False) -> Probe:
        """Runs a case in the worker process under all guard patterns (under XLA: once, without)."""
        patterns = {"xla": [None]} if jit else GUARDS
        flat = [pattern for group in patterns.values() for pattern in group]
        if order and case is not self.given and (refusal := self.probe(case)).error:
            try:
                self.trace(case, order)
            except Exception:  # a gradient that can't be traced where the op is refused is never called
                return refusal
        try:
            results = iter(self.ask("run", case, order, flat, jit))
        except child.Died as death:
            return Probe({}, str(death), died=True)
        except child.RaisedError as error:
            return Probe({}, str(error))
        return Probe({name: [next(results) for _ in group] for name, group in patterns.items()})

    def ask(self, job: str, case: Case, order: int, *arguments: Any) -> Any:
        """Runs a job of ``worker`` on the traced case."""
        graph = self.trace(case, order)
        return child.ask(graph.libraries, job, graph, self.arrays(case, order), *arguments)

    @functools.cache  # noqa: B019
    def survives(self, case: Case) -> bool:
        """Whether the kernels (gradients included) can be run on the case in this process."""
        # XLA also calls kernels that have nothing to do.
        modes = (False, True) if 0 in {size for array in case.flat for size in array.shape} else (False,)
        return not any(self.probe(case, order, jit).died for order in self.orders(case) for jit in modes)

    def values(self, case: Case) -> Sequence[Array]:
        """The outputs, of a case that the kernel takes."""
        return cast(Sequence[Array], self.probe(case).results["output"][0])

    @functools.cached_property
    def varies(self) -> str:
        """Which result changes from run to run, or when several threads call at once, in words, or ""."""
        for case in (self.given, cases.large(self.op, self.given)):
            for order in self.orders(case):
                if not self.survives(case) or self.probe(case, order).error:
                    continue
                # Guarded: what the kernel leaves unwritten is no race.
                changes = self.ask("repeat", case, order, GUARDS["output"][0], self.repeats, min(self.repeats, THREADS))
                for name, count in zip(self.result_names(case, order), changes, strict=True):
                    if count:
                        inputs = ", ".join(map(compare.describe, case.flat))
                        return f"{name} differs from the first run in {count} of {2 * self.repeats} runs on {inputs}"
        return ""

    # The reference

    @functools.cache  # noqa: B019
    def right(self, case: Case, order: int) -> Right:
        """What the reference gives. Raises Skipped without one, and what the reference raises."""
        function = _derivative(case.function(self.op, self.run_reference), case, order)
        return self.judge(function, self.arrays(case, order), (case.kind[0], case.kind[2], order), order)

    def run_reference(self, *inputs: Any, **attributes: Any) -> Any:
        """The reference. Raises Skipped when there is none."""
        if self.op.reference_function is None:
            raise Skipped(f"no reference to compare with: write one under @{self.op.__name__}.reference")
        return self.op.run_reference(*inputs, **attributes)

    def judge(self, function: Program, arrays: Sequence[Array], key: Any, order: int, mode: str = "eagerly") -> Right:
        """What a function made of the reference gives; ``key`` names the function."""
        naive = evaluate(function, arrays, mode)
        exact, note = self._in_float64(function, arrays, key, naive)
        plain, true, scale = naive, exact, 1.0
        if any(array.dtype in (np.float64, np.complex128) for array in arrays) and not note:
            # Float64 is its own yardstick: the computation's error is measured one precision lower.
            arrays = [single(array) for array in arrays]
            plain, scale = evaluate(function, arrays, mode), 2.0**-29
            true, note = self._in_float64(function, arrays, key, plain)
        errors = [compare.error(one, other) * scale for one, other in zip(plain, true, strict=True)]
        allowance = [
            0.0 if one is None or other is None else 2 * error + compare.slack(one, other, _ROUNDINGS[order])
            for error, one, other in zip(errors, naive, exact, strict=True)
        ]
        return Right(naive, exact, allowance, note)

    def _in_float64(
        self, function: Program, arrays: Sequence[Array], key: Any, naive: list[Array | None]
    ) -> tuple[list[Array | None], str]:
        key = key, tuple((wide(array).dtype.name, array.ndim) for array in arrays)
        if key not in self._exact:
            try:
                self._exact[key] = in_float64(function, arrays)
            except Exception as error:  # whatever TensorFlow has against it
                self._exact[key] = f"the reference has no float64 form ({type(error).__name__}: {_first_line(error)})"
        run = self._exact[key]
        return (naive, run) if isinstance(run, str) else (run(arrays), "")

    def allowance(self, case: Case, order: int, values: Sequence[Array | None]) -> list[float]:
        """How far two right results may lie apart: from the reference, else a few roundings of the largest value."""
        try:
            return [2 * allowed for allowed in self.right(case, order).allowance]
        except Skipped:
            return [0.0 if value is None else compare.slack(value, value, 8 * _ROUNDINGS[order]) for value in values]


def _derivative(function: Program, case: Case, order: int) -> Program:
    inputs = len(case.flat)
    return (function, with_gradients(function, inputs), second_derivatives(function, inputs))[order]


MODES = ("eagerly", "in a graph", "under XLA")


def evaluate(function: Program, arrays: Sequence[Array], mode: str = "eagerly") -> list[Array | None]:
    """Calls a function of tensors with arrays, in one of the modes."""
    tensors = [tf.constant(array) for array in arrays]
    if mode != "eagerly":  # a concrete function, since tf.function would warn that it is made again and again
        traced = tf.function(function, jit_compile=mode == "under XLA", autograph=False)
        function = traced.get_concrete_function(*tensors)
    return [None if one is None else as_array(one) for one in function(*tensors)]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
