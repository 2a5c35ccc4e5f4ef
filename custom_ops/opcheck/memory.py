"""Checks of the kernel alone, in the worker process: crashes, memory, refusals, and the same result every time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.engine.schema import DTYPES, REST, named
from tftoolkit.custom_ops.opcheck import cases, child
from tftoolkit.custom_ops.opcheck.cases import Case
from tftoolkit.custom_ops.opcheck.compare import describe
from tftoolkit.custom_ops.opcheck.graphs import Array
from tftoolkit.custom_ops.opcheck.report import Failed, Skipped
from tftoolkit.custom_ops.opcheck.subject import THREADS, Guards, Probe, Subject

# What a kernel may answer to inputs that it does not take; everything else is a failure.
_REFUSALS = ("InvalidArgumentError", "OutOfRangeError", "UnimplementedError", "FailedPreconditionError")
_OVERWRITTEN = "DataLossError"


def over(subject: Subject, chosen: Iterable[Case], test: Callable[[Case], Sequence[str]], advice: str) -> str:
    """Runs a test on those cases that the kernels survive and do not refuse; says on how many.

    Raises Failed with the first finding, Skipped when no case is left.
    """
    findings: list[tuple[Case, str]] = []
    tested = 0
    for case in chosen:
        if subject.survives(case) and not subject.probe(case).error:
            try:
                findings += [(case, text) for text in test(case)]
            except tf.errors.InvalidArgumentError:  # the reference's, for an index out of the changed range, say
                if case is subject.given:
                    raise
                continue
            tested += 1
    if findings:
        case, text = findings[0]
        labels = list(dict.fromkeys(case.label for case, _ in findings))
        more = f"; also with {', '.join(labels[1:6])}{', …' if len(labels) > 6 else ''}" if len(labels) > 1 else ""
        raise Failed(f"{case.label}: {text}{more}", advice)
    if not tested:
        raise Skipped("there is no case that the kernel takes: see runs and empty")
    return f"{tested} case{'s' * (tested > 1)}"


def runs(subject: Subject) -> str:
    """The kernel crashes, hangs or raises on inputs that fit its schema."""
    everything = [subject.given, *subject.dtypes, *subject.variants, *subject.sizes]
    return _runs(subject, everything)


def empty(subject: Subject) -> str:
    """The kernel (or that of its gradient) crashes or raises when a dimension is 0, perhaps only under XLA."""
    if not subject.empties:
        raise Skipped("the schema has no dimension that can be 0")
    return _runs(subject, subject.empties)


def _runs(subject: Subject, chosen: Sequence[Case]) -> str:
    refused = []
    for case in chosen:
        for order in subject.orders(case):
            for jit in (False, True) if case in subject.empties else (False,):
                probe = subject.probe(case, order, jit)
                where = f"{case.label}{', gradient' * order}{', under XLA' * jit}"
                if probe.died:
                    raise Failed(
                        f"{where}: the kernel {probe.error}",
                        f"run it on {_described(case)} under gdb or AddressSanitizer (extra_cflags)",
                    )
                if not probe.error or probe.error.startswith(_OVERWRITTEN):
                    continue
                if case is subject.given or not probe.error.startswith(_REFUSALS):
                    raise Failed(f"{where}: {probe.error[:300]}", "make it work, or refuse with InvalidArgument")
                refused.append(f"{where}: {probe.error[:120]}")
    note = f"; {len(refused)} refused, such as {refused[0]}" if refused else ""
    return f"{len(chosen)} cases{note}"


def _described(case: Case) -> str:
    return ", ".join(map(describe, case.flat))


def determinism(subject: Subject) -> str:
    """The result changes from run to run, or when several threads call at once: a race, or shared scratch memory."""
    if subject.varies:
        raise Failed(
            subject.varies,
            "tasks must write to places of their own and be added in a fixed order; no static or shared scratch memory",
        )
    times = subject.repeats
    return f"bitwise equal in {times} runs in a row and {times} from {min(times, THREADS)} threads at once"


def written(subject: Subject) -> str:
    """A result depends on what was in the output's memory before: the kernel leaves part of it unwritten."""
    advice = "write every element of every output, also for odd sizes and empty inputs: outputs come uninitialised"
    return _unchanged(subject, "output", "depends on what its memory held before", advice)


def bounds(subject: Subject) -> str:
    """A result depends on memory around an input (read past its end), or memory outside of a buffer was written."""
    chosen = [subject.given, *subject.dtypes, *subject.sizes, *subject.empties]
    for case in chosen:
        for order in subject.orders(case):
            probe = subject.probe(case, order)
            if probe.error.startswith(_OVERWRITTEN):
                raise Failed(f"{case.label}: {probe.error.partition(': ')[2][:300]}", "mind the last, partial vector")
    advice = "the last vector of a row or buffer is a partial one: mask it or finish with single elements"
    return _unchanged(subject, "around", "depends on memory outside of the inputs", advice)


def _unchanged(subject: Subject, pattern: str, text: str, advice: str) -> str:
    if subject.varies:
        raise Skipped("results change from run to run: see determinism")

    def test(case: Case) -> list[str]:
        for order in subject.orders(case):
            probe = subject.probe(case, order)
            found = _differing(probe, pattern, subject.result_names(case, order))
            if found:
                culprit = _read_past(subject, case) if pattern == "around" and order == 0 else ""
                return [f"{found} {text}{culprit}"]
        return []

    return over(subject, [subject.given, *subject.dtypes, *subject.sizes, *subject.empties], test, advice)


def _differing(probe: Probe, pattern: str, result_names: Sequence[str]) -> str:
    first, *others = probe.results.get(pattern, [[]])
    for other in others:
        for name, one, two in zip(result_names, first, other, strict=True):
            if one is not None and two is not None and one.tobytes() != two.tobytes():
                different = (_as_bytes(one) != _as_bytes(two)).any(axis=-1)
                at = np.unravel_index(int(np.argmax(different)), different.shape)
                count = f"{different.sum()} of {different.size} elements"
                return f"{name} ({count}, the first at [{', '.join(map(str, at))}])"
    return ""


def _as_bytes(array: Array) -> Array:
    return np.ascontiguousarray(array)[..., np.newaxis].view(np.uint8)


def _read_past(subject: Subject, case: Case) -> str:
    """Which input the kernel reads past: the one whose surroundings matter."""
    found = []
    for i, name in enumerate(cases.input_names(subject.op, case)):
        patterns: list[Guards] = [(0x5A, byte, i) for byte in (0x5A, 0xDA, 0xFF)]
        results = subject.ask("run", case, 0, patterns, False)
        if _differing(Probe({"around": results}), "around", subject.outputs):
            found.append(name)
    return f": the kernel reads past the end of input {' and '.join(found)}" if found else ""


def invalid(subject: Subject) -> str:
    """The op takes inputs of a wrong rank, dimension or dtype, or crashes on them, instead of refusing."""
    wrong = list(_wrong_inputs(subject))
    if not wrong:
        raise Skipped("the schema takes inputs of any shape and dtype")
    library = subject.op.library
    place = library.name, str(library.path)
    for case in wrong:
        call = (*place, subject.op.name, case.inputs, case.attributes)
        try:
            child.ask([place], "call", *call)
        except child.Died as death:
            raise Failed(f"{case.label}: the kernel {death}", "check the inputs in the kernel") from None
        except child.RaisedError as error:
            if error.kind in ("InvalidArgumentError", "ValueError", "TypeError"):
                continue
            raise Failed(f"{case.label}: raises {error}", "refuse with InvalidArgument") from None
        raise Failed(f"{case.label}: is taken without an error", "check the inputs in the kernel")
    return f"{len(wrong)} wrong calls refused"


def _wrong_inputs(subject: Subject) -> Iterable[Case]:
    given = subject.given

    def case(i: int, value: Array, label: str) -> Case:
        return replace(given, label=label, inputs=(*given.inputs[:i], value, *given.inputs[i + 1 :]))

    used = [named(dim) or dim for argument in subject.op.schema.inputs for dim in argument.dims]
    used = [name[0] if isinstance(name, tuple) else name for name in used]
    for i, (argument, value) in enumerate(zip(subject.op.schema.inputs, given.inputs, strict=True)):
        if not isinstance(value, np.ndarray):
            continue
        shapes = {}
        listed = len(argument.dims) - (REST in argument.dims)
        if listed:
            shapes[f"{argument.name} of rank {listed - 1}"] = (1,) * (listed - 1)
        if REST not in argument.dims:
            shapes[f"{argument.name} of rank {listed + 1}"] = (*value.shape, 1)
            for axis, dim in enumerate(argument.dims):
                if isinstance(dim, int) or used.count((named(dim) or ("",))[0]) > 1:
                    wrong = (*value.shape[:axis], value.shape[axis] + 1, *value.shape[axis + 1 :])
                    shapes[f"{argument.name} with {dim} = {wrong[axis]}"] = wrong
        for label, shape in shapes.items():
            yield case(i, np.ones(shape, value.dtype), label)
        allowed = subject.op.schema.dtype_vars.get(argument.dtype, (argument.dtype,))
        other = next(dtype for dtype in ("f64", "i32", "bool", "c64") if dtype not in allowed)
        yield case(i, value.astype(DTYPES[other]), f"{argument.name} of dtype {other}")
