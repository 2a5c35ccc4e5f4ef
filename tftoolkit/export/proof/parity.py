"""Whether a file computes what TensorFlow computes, within the bounds of ``bounds``."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Mapping, Sequence

import numpy as np

from tftoolkit.export.convert.formats import Format
from tftoolkit.export.proof.distance import difference, distance, fraction_of_other_class, is_float
from tftoolkit.export.proof.variation import Variation
from tftoolkit.export.report import Check, ExportError, first_line
from tftoolkit.export.runtimes.made_up import INTEGERS, LARGE, LIMITS, NOT_FINITE
from tftoolkit.export.runtimes.runtime import Arrays, Runtime
from tftoolkit.export.runtimes.samples import Case

# Inputs that a model may never meet.
WHAT = {
    "large": f"{LARGE:g} times as large as the random ones, or at the ends of input_ranges",
    "inf": "infinite numbers",
    "nan": "not numbers",
    LIMITS: "the least and the greatest integers of their type",
    **{kind: f"integers from {low} to {high}" for kind, (low, high) in INTEGERS.items()},
}
Key = tuple[str, str, str]  # signature, output and kind of inputs


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A case with TensorFlow's outputs, and how far off the file may be; None where no bound can be derived.

    For other outputs than floats a bound of at most 1 is a fraction of elements, a larger one a difference.
    ``asks``: the model asks whether numbers are finite, so that it matters what NaN becomes.
    """

    case: Case
    outputs: Arrays
    bounds: dict[str, float | None]
    asks: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """``unproven``: the outputs, or parts of them, of which the bound says nothing, with the reason by signature."""

    checks: tuple[Check, ...]
    unproven: tuple[Unproven, ...] = ()


@dataclasses.dataclass(frozen=True)
class Unproven:
    """A part of an output that the file does not follow, and that may be anything within the bound."""

    signature: str
    tensor: str
    part: str
    bound: float

    def __str__(self) -> str:
        return f"{self.tensor}{self.part}"


def compare(
    file: Runtime, golden: Sequence[GoldenCase], number_format: Format, endless: Container[str] = ()
) -> Comparison:
    """Runs every case in the file. Raises ExportError for the first output that is off by more than its bound.

    ``endless``: the kinds of inputs on which calls of the file don't end, which are not tried again.
    """
    found: dict[Key, list[tuple[Check, int | None]]] = collections.defaultdict(list)
    variations: dict[Key, Variation] = collections.defaultdict(Variation)
    for item in golden:
        case = item.case
        if case.kind in endless:
            reason = (
                f"calls on {case.kind} inputs do not end, where TensorFlow's do: a loop's condition differs on them"
            )
            raise ExportError("parity", reason, signature=case.signature)
        actual = _run(file, case)
        for name, value in item.outputs.items():
            _same_shape(case, name, value, actual[name])
            key = (case.signature, name, case.kind)
            found[key].append(_checked(item, name, actual[name]))
            if case.kind in ("real", "random"):
                variations[key].see(value, actual[name])
    checks = tuple(map(_joined, found.values()))
    for check in checks:
        judge(check, number_format)
    return Comparison(checks, _unproven(checks, variations, number_format))


def _checked(item: GoldenCase, name: str, actual: np.ndarray) -> tuple[Check, int | None]:
    """With the number of elements, where the error is a fraction of them."""
    case, expected, bound = item.case, item.outputs[name], item.bounds[name]
    counted: int | None = expected.size
    if case.kind in NOT_FINITE and is_float(expected):
        error = fraction_of_other_class(actual, expected, item.asks)
    elif is_float(expected) or (bound is not None and bound > 1.0):
        error, counted = distance(actual, expected), None
    else:
        error = difference(actual, expected)
    return Check(case.signature, name, case.kind, error, bound), counted


def _unproven(
    checks: Sequence[Check], variations: Mapping[Key, Variation], number_format: Format
) -> tuple[Unproven, ...]:
    """On real inputs where there are any, else on random ones."""
    real = {(check.signature, check.tensor) for check in checks if check.inputs == "real"}
    found = []
    for check in checks:
        judged = "real" if (check.signature, check.tensor) in real else "random"
        if check.inputs != judged or check.bound is None:
            continue
        part = variations[check.signature, check.tensor, check.inputs].unproven(check.bound, number_format)
        if part is not None:
            found.append(Unproven(check.signature, check.tensor, part, check.bound))
    return tuple(found)


def refuse(unproven: Sequence[Unproven], number_format: Format) -> None:
    """Raises ExportError where something is unproven."""
    for item in unproven:
        advice = (
            "give it an output of its own" if item.part else "a number in the model is much larger than its outputs"
        )
        if number_format.steps:
            advice += ", or keep what makes it in float (keep_float; export.quantization_errors names the layers)"
        reason = (
            f"nothing is proven for {item}: {number_format.name} allows {item.tensor} to be off by {item.bound:.3g}, "
            f"which is more than TensorFlow's values vary there, and the file's do not follow them: {advice}; or give "
            f"metric and max_drop, which then decide"
        )
        raise ExportError("parity", reason, signature=item.signature, tensor=item.tensor)


def _joined(parts: Sequence[tuple[Check, int | None]]) -> Check:
    """The largest error and bound of several calls; of fractions those of all elements together."""
    errors = [check.error for check, _ in parts]
    bounds = [check.bound for check, _ in parts if check.bound is not None]
    sizes = [size for _, size in parts if size is not None]
    if sizes:
        total = max(1, sum(sizes))  # counts are whole numbers: their sums are exact
        error = sum(round(e * n) for e, n in zip(errors, sizes, strict=True)) / total
        allowed = sum(round(b * n) for b, n in zip(bounds, sizes, strict=False)) / total
    else:
        error, allowed = max(errors), max(bounds, default=0.0)
    return dataclasses.replace(parts[0][0], error=error, bound=allowed if len(bounds) == len(parts) else None)


def judge(check: Check, number_format: Format) -> None:
    """Raises ExportError where the error is above the bound."""
    reason = None
    if check.bound is not None and not check.error <= check.bound:
        reason = (
            f"differs from TensorFlow by {check.error:.3g} on {check.inputs} inputs; {number_format.name} allows "
            f"{check.bound:.3g}. {_advice(check.inputs, number_format)}"
        )
        if check.inputs in NOT_FINITE:
            reason = (
                f"{check.error:.0%} of its elements are wrong on {check.inputs} inputs (finite, infinite or NaN where "
                f"TensorFlow's are not). {_advice(check.inputs, number_format)}"
            )
    elif check.bound is None and not np.isfinite(check.error):
        reason = f"is not finite on {check.inputs} inputs, where TensorFlow is"
    if reason is not None:
        raise ExportError("parity", reason, signature=check.signature, tensor=check.tensor)


def _advice(kind: str, number_format: Format) -> str:
    """What to do about a difference on such inputs."""
    if kind in WHAT:
        return (
            f"Those are {WHAT[kind]}: if the model never meets them, say so: input_ranges={{name: (least, greatest)}}"
        )
    if number_format.steps:
        return "export.quantization_errors names the layers that cost most, keep_float keeps them in float"
    return (
        "The file computes something else: it is of another model, or the converter is wrong here "
        "(docs/known_converter_bugs.md); to find the op, export parts of the model"
    )


def _run(file: Runtime, case: Case) -> Arrays:
    try:
        return file.run(case.signature, case.inputs)
    except Exception as error:  # the runtimes raise many kinds
        raise ExportError(
            "parity",
            f"the file fails on {case.kind} inputs that TensorFlow takes: {first_line(error)}",
            signature=case.signature,
        ) from error


def _same_shape(case: Case, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ExportError(
            "parity",
            f"is {actual.dtype}{list(actual.shape)} on {case.kind} inputs; TensorFlow gives "
            f"{expected.dtype}{list(expected.shape)}",
            signature=case.signature,
            tensor=name,
        )
