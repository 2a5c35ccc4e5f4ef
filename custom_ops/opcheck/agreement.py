"""Checks of values: hosts and reference agree, shapes are what was promised, nothing gets lost on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.opcheck import compare
from tftoolkit.custom_ops.opcheck.cases import Case, resampled
from tftoolkit.custom_ops.opcheck.child import Died, RaisedError, ask
from tftoolkit.custom_ops.opcheck.gradients import against_reference
from tftoolkit.custom_ops.opcheck.graphs import Array, is_inexact
from tftoolkit.custom_ops.opcheck.memory import over
from tftoolkit.custom_ops.opcheck.report import Skipped
from tftoolkit.custom_ops.opcheck.subject import MODES, Subject, evaluate


def modes(subject: Subject) -> str:
    """Eager, graph and XLA disagree, in values or gradients: attributes, layouts or unwritten memory differ there."""
    chosen = [subject.given, *subject.dtypes, *subject.variants]
    advice = "look for attributes read in another order than the schema's, for state kept between calls, and for "
    advice += "services of the host that the kernel uses differently"
    return "eager, graph and XLA agree in " + over(subject, chosen, lambda case: _modes(subject, case), advice)


def _modes(subject: Subject, case: Case) -> list[str]:
    found: list[str] = []
    for order in subject.orders(case):
        function = subject.function(case, order)
        arrays = subject.arrays(case, order)
        eager = evaluate(function, arrays)
        allowed = subject.allowance(case, order, eager)
        jitted = subject.probe(case, order, jit=True)
        if jitted.error:
            return [f"under XLA the kernel {'' if jitted.died else 'raises '}{jitted.error[:300]}"]
        others = {"in a graph": evaluate(function, arrays, "in a graph")}
        others["under XLA"] = list(jitted.results["xla"][0])
        if "CUDA" in subject.op.handlers and tf.config.list_physical_devices("GPU"):
            with tf.device("/GPU:0"):
                others |= {f"on the GPU, {mode},": evaluate(function, arrays, mode) for mode in MODES}
        for mode, other in others.items():
            for name, one, two, allowance in zip(subject.result_names(case, order), eager, other, allowed, strict=True):
                text = "" if one is None or two is None else compare.difference(two, one, allowance)
                found += [f"{mode} {name} {text}, as it is eagerly"] if text else []
    return found


def shapes(subject: Subject) -> str:
    """Shapes or dtypes differ: inferred while tracing, at run time, and those of the reference."""
    case = subject.given
    advice = (
        "the schema's output dimensions, the kernel and the reference must say the same: correct the one that is wrong"
    )
    specs = list(_specs(case))
    over(subject, [case], lambda case: _inferred(subject, case, specs), advice)
    if subject.op.reference_function is None:
        return f"{len(specs)} ways of knowing the inputs' shapes"
    over(subject, [case, *subject.sizes, *subject.empties], lambda case: _of_reference(subject, case), advice)
    return f"{len(specs)} ways of knowing the inputs' shapes; the reference's are the same"


def _specs(case: Case) -> Iterator[Sequence[Sequence[int | None] | None]]:
    """Known, with each dimension unknown, with all, and of unknown rank."""
    known: list[list[int | None]] = [list(array.shape) for array in case.flat]
    yield known
    yield [[None] * len(shape) for shape in known]
    yield [None] * len(known)
    for i, shape in enumerate(known):
        yield [*known[:i], None, *known[i + 1 :]]
        for axis in range(len(shape)):
            yield [*known[:i], [*shape[:axis], None, *shape[axis + 1 :]], *known[i + 1 :]]


def _inferred(subject: Subject, case: Case, specs: Sequence[Sequence[Sequence[int | None] | None]]) -> list[str]:
    actual = subject.values(case)
    found = []
    for place, shapes_known in enumerate(specs):
        given = [tf.TensorSpec(shape, array.dtype) for shape, array in zip(shapes_known, case.flat, strict=True)]
        function = tf.function(subject.function(case), autograph=False)
        inferred = function.get_concrete_function(*given).structured_outputs
        for name, spec, one in zip(subject.outputs, inferred, actual, strict=True):
            exact = place > 0 or spec.shape.is_fully_defined()
            if spec.dtype != one.dtype or not spec.shape.is_compatible_with(one.shape) or not exact:
                text = f"{name} is inferred as {spec.dtype.name}{spec.shape} and is {compare.describe(one)}"
                found.append(f"inputs known as {shapes_known}: {text}")
    return found


def _of_reference(subject: Subject, case: Case) -> list[str]:
    return [
        f"{name} is {compare.describe(one)}, the reference's is {compare.describe(other)}"
        for name, one, other in zip(subject.outputs, subject.values(case), subject.right(case, 0).naive, strict=True)
        if other is not None and (one.shape != other.shape or one.dtype != other.dtype)
    ]


def reference(subject: Subject) -> str:
    """Values are further from the reference in float64 than twice the reference's own error in the op's dtype."""
    chosen = [subject.given, *subject.dtypes, *subject.variants]
    found = over(subject, chosen, lambda case: _against_reference(subject, case), "compare kernel and reference there")
    note = subject.right(subject.given, 0).note
    return f"{found} within twice the error of the naive computation{f' ({note})' if note else ''}"


def sizes(subject: Subject) -> str:
    """Values or gradients are wrong at other sizes: 1, primes, beside multiples of vector widths, other ranks."""
    if not subject.sizes:
        raise Skipped("the schema fixes all sizes")
    advice = "look at the last, partial vector and at the border between tasks"
    return over(subject, subject.sizes, lambda case: _against_reference(subject, case, True), advice)


def empty_values(subject: Subject) -> str:
    """Values or gradients of empty inputs are not the reference's: a sum over nothing is 0, a mean of nothing NaN."""
    if not subject.empties:
        raise Skipped("the schema has no dimension that can be 0")
    advice = "handle zero elements before the loop: outputs that are not empty must be written all the same"
    return over(subject, subject.empties, lambda case: _against_reference(subject, case, True), advice)


def _against_reference(subject: Subject, case: Case, gradients: bool = False) -> list[str]:
    found = compare.against(subject.outputs, subject.values(case), subject.right(case, 0))
    return found + (against_reference(subject, case) if gradients and 1 in subject.orders(case) else [])


def nan(subject: Subject) -> str:
    """NaN in an input does not come out where the reference says it must, or comes out where it must not."""
    chosen = list(_with_nan(subject))
    if not chosen:
        raise Skipped("there is no floating input")
    advice = "comparisons, max and clipping let NaN through only if written so: x > y ? x : y swallows a NaN in x"
    return over(subject, chosen, lambda case: _nan_places(subject, case), advice)


def _with_nan(subject: Subject) -> Iterator[Case]:
    for case in [subject.given, *subject.dtypes]:
        for i, (argument, value) in enumerate(zip(subject.op.schema.inputs, case.inputs, strict=True)):
            if not isinstance(value, np.ndarray) or not is_inexact(value.dtype) or not value.size:
                continue
            for place in sorted({0, value.size // 2, value.size - 1}):
                damaged = value.copy()
                damaged.reshape(-1)[place] = np.nan
                at = ", ".join(map(str, np.unravel_index(place, value.shape)))
                label = f"{case.label}, NaN in {argument.name} at [{at}]"
                yield replace(case, label=label, inputs=(*case.inputs[:i], damaged, *case.inputs[i + 1 :]))


def _nan_places(subject: Subject, case: Case) -> list[str]:
    naive = evaluate(case.function(subject.op, subject.run_reference), case.flat)
    found = []
    for name, one, other in zip(subject.outputs, subject.values(case), naive, strict=True):
        if other is None or not is_inexact(one.dtype) or one.shape != other.shape:
            continue
        ours, theirs = np.isnan(one), np.isnan(other)
        if (ours != theirs).any():
            at = np.unravel_index(int(np.argmax(ours != theirs)), ours.shape)
            found.append(f"{name} is {one[at]} at [{', '.join(map(str, at))}], the reference's is {other[at]}")
    return found


def vectorized_map(subject: Subject) -> str:
    """``tf.vectorized_map`` gives something else than one call after the other."""
    advice = "a batchable op must treat every row by itself: mend the kernel, or take the word out of the schema"
    found = over(subject, [subject.given], lambda case: _vectorized(subject, case), advice)
    return f"{found}, {'in one call on stacked inputs' if subject.op.schema.batchable else 'one call after the other'}"


def _other(function: Callable[..., Any], case: Case) -> Sequence[Array]:
    """Another example of the same shapes; with the integers of ``case``, if the op refuses those of others."""
    other = resampled(case)
    try:
        evaluate(function, other)
    except tf.errors.InvalidArgumentError:
        return [one if is_inexact(one.dtype) else own for one, own in zip(other, case.flat, strict=True)]
    return other


def _vectorized(subject: Subject, case: Case) -> list[str]:
    function = subject.function(case)
    examples = [case.flat, _other(function, case), case.flat]

    def map_all(*flat: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return cast(tuple[tf.Tensor, ...], tf.vectorized_map(lambda one: tuple(function(*one)), flat))

    mapped = evaluate(map_all, [np.stack(column) for column in zip(*examples, strict=True)], "in a graph")
    found = []
    for i, example in enumerate(examples):
        values = evaluate(function, example)
        allowed = subject.allowance(case, 0, values)
        for name, one, other, allowance in zip(subject.outputs, mapped, values, allowed, strict=True):
            text = "" if one is None or other is None else compare.difference(one[i], other, allowance)
            found += [f"{name} of example {i} {text}"] if text else []
    return found


def saved_model(subject: Subject) -> str:
    """A SavedModel with the op gives another result, or cannot be loaded, in a process that did not make it."""
    op, case = subject.op, subject.given
    if op.tf_name != f"{op.library.name}>{op.name}":
        raise Skipped(f"its source changed in this process, where it is now {op.tf_name}: start a new one")
    advice = "the library must be opened (load or open_library, then register()) before the model is loaded"

    def test(case: Case) -> list[str]:
        module = tf.Module()
        specs = [tf.TensorSpec([None] * array.ndim, array.dtype) for array in case.flat]
        module.check = tf.function(subject.function(case), input_signature=specs, autograph=False)
        with tempfile.TemporaryDirectory() as folder:
            options = tf.saved_model.SaveOptions(namespace_whitelist=[op.library.name])
            tf.saved_model.save(module, folder, options=options)
            try:
                loaded: list[Array] = ask([(op.library.name, str(op.library.path))], "saved_model", folder, case.flat)
            except (Died, RaisedError) as error:
                return [str(error)[:300]]
        here = evaluate(subject.function(case), case.flat)
        allowed = subject.allowance(case, 0, here)
        found = []
        for name, one, other, allowance in zip(subject.outputs, loaded, here, allowed, strict=True):
            text = "" if other is None else compare.difference(one, other, allowance)
            found += [f"{name} {text}, as it was before"] if text else []
        return found

    over(subject, [case], test, advice)
    return "the same result in another process"
