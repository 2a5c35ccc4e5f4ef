"""Whether a file computes what TensorFlow computes, within a bound derived from the file's number format.

The bound. A format rounds the numbers of a model: float32 by at most half a unit in the last place (a relative
2^-24), int8 with one scale per channel by half a step (1/254 of the largest magnitude in the channel). Both programs
are right when each equals the exact function of inputs and weights that were perturbed by a few such roundings
(backward error; Higham, Accuracy and Stability of Numerical Algorithms, ch. 1 and 3). So we measure what that does: the
golden model runs with its inputs and weights perturbed at random by ``slack`` roundings, several times, and the
largest change seen in an output, plus ``slack`` roundings of the output's own magnitude, is what the file may be off.
A badly conditioned model thus gets the room it needs, and a well conditioned one none to hide an error in. Weights are
the variables and, where the format stores them more coarsely than float32, the constants.

``slack`` stands for the roundings of the activations. For floating point, sums over n terms in another order differ by
a small multiple of sqrt(n) roundings (Higham and Mary, 2019): 16 + 2 sqrt(n) with the largest n among weights and
inputs. A sum of products is then that of perturbed factors; but the values of an elementary function are not: exp(x) of
a small x is 1 with a rounding of 2^-24, whatever x was perturbed by. Where such values are nearly equal and are
normalised (softplus or exp, then LayerNormalization, of embedded tokens: nothing can be perturbed at the input), all
that is left are those roundings, and right files needed up to 1.07 of the bound. So in floating point the values of
elementary functions are perturbed by ``slack`` roundings, too (``rounding``). For integers each layer adds about one
rounding of its own, independent of the others: 4 covers some 16 layers. tools/random_models measures how much of the
bound right files need. Weights that are stored more coarsely than computed with (float16, dynamic, int16x8) are
perturbed by 4 of their own roundings: one would be the format's, the others make up for drawing at random.

Integer, bool and string outputs (a class) are right or wrong as a whole, so elements are counted: those that differ in
the file, over all calls with one kind of inputs, must not be more than those that one or another perturbed run changed.
With 26 calls of 4 examples, of which 3 are close decisions, 3 of 104 elements may differ (2.9%); a file that is off by
one everywhere differs in 100%. Where perturbation changes more than half of all elements (a picture in uint8 computed
in int8), counting would allow nearly anything: then the largest difference counts, as with floats, and may be one more
than the largest that perturbation caused, since each of the two was truncated.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.export.convert.formats import Format
from tftoolkit.export.report import Check, ExportError
from tftoolkit.export.runtimes.runtime import Arrays, Runtime
from tftoolkit.export.runtimes.samples import Case

if TYPE_CHECKING:
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

DRAWS = 4
COARSE = 4.0
SECONDS = 20.0  # for a call on zeros, large numbers and NaN, on which a loop may have no end
UNDECIDED = 0.5  # the fraction of elements from which on counting them says nothing


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A case with TensorFlow's outputs, and how far off the file may be; None where no bound can be derived.

    For other outputs than floats a bound of at most 1 is a fraction of elements, a larger one a difference.
    """

    case: Case
    outputs: Arrays
    bounds: dict[str, float | None]


def golden_cases(golden: SavedModelRuntime, cases: Sequence[Case], number_format: Format) -> list[GoldenCase]:
    """The cases that TensorFlow can run. Raises ExportError where a signature has none, or its outputs are random."""
    slack = _slack(golden, cases, number_format)
    runnable = _golden(golden, cases, slack * number_format.rounding)
    if number_format.steps:  # what overflows in TensorFlow saturates in integers, which have no infinity
        runnable = [(case, outputs) for case, outputs in runnable if case.kind != "large" or _finite(outputs)]
    allowed = _allowed(golden, runnable, number_format, slack)
    found = []
    for (case, outputs), bounds in zip(runnable, allowed, strict=True):
        # Calibrated activations saturate outside their range, by design; NaN has no distance.
        unbounded = case.kind == "nan" or (number_format.calibrated and case.kind != "real")
        found.append(GoldenCase(case, outputs, dict.fromkeys(bounds) if unbounded else dict(bounds)))
    return found


def _finite(outputs: Arrays) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind in "fc")


def compare(
    file: Runtime, golden: Sequence[GoldenCase], format_name: str, endless: Container[str] = ()
) -> tuple[Check, ...]:
    """Runs every case in the file. Raises ExportError for the first output that is off by more than its bound.

    ``endless``: the kinds of inputs on which calls of the file don't end, which are not tried again.
    """
    found: dict[tuple[str, str, str], list[tuple[Check, int | None]]] = collections.defaultdict(list)
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
            bound, counted = item.bounds[name], None
            if case.kind == "nan":
                error = float(np.mean(_is_nan(value) != _is_nan(actual[name]))) if value.size else 0.0
            elif _is_float(value) or (bound is not None and bound > 1.0):
                error = distance(actual[name], value)
            else:
                error, counted = difference(actual[name], value), value.size
            check = Check(case.signature, name, case.kind, error, bound)
            found[case.signature, name, case.kind].append((check, counted))
    checks = tuple(map(_joined, found.values()))
    for check in checks:
        judge(check, format_name)
    return checks


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind in "fcV"  # V: bfloat16


def _is_nan(value: np.ndarray) -> np.ndarray:
    return np.isnan(value) if value.dtype.kind in "fc" else np.zeros(value.shape, bool)


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


def judge(check: Check, format_name: str) -> None:
    if check.bound is not None and not check.error <= check.bound:
        reason = (
            f"differs from TensorFlow by {check.error:.3g} on {check.inputs} inputs; {format_name} allows "
            f"{check.bound:.3g}. Either the file is of another model, the format is too coarse for it, or the "
            f"conversion is wrong"
        )
        raise ExportError("parity", reason, signature=check.signature, tensor=check.tensor)
    if check.bound is None and not np.isfinite(check.error):
        reason = f"is not finite on {check.inputs} inputs, where TensorFlow is"
        raise ExportError("parity", reason, signature=check.signature, tensor=check.tensor)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """``distance`` of floats; for other than floats the fraction of elements that differs."""
    if _is_float(expected):
        return distance(actual, expected)
    return float(np.mean(actual != expected)) if expected.size else 0.0


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|actual - expected|, infinite where only one is finite."""
    if not expected.size:
        return 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(gap), np.inf, gap)))


class _Moved:
    """How far the perturbed runs were from an output, and for other than floats which elements differed in any."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.distance = 0.0
        self.elements = np.zeros(value.shape, bool)

    def see(self, changed: np.ndarray) -> None:
        if not _is_float(self.value):
            self.elements |= changed != self.value
        if self.value.dtype.kind in "fcViu":
            self.distance = max(self.distance, distance(changed, self.value))

    @property
    def fraction(self) -> float:
        return float(self.elements.mean()) if self.elements.size else 0.0


def _golden(golden: SavedModelRuntime, cases: Sequence[Case], relative: float) -> list[tuple[Case, Arrays]]:
    """The cases that TensorFlow can run, with its outputs.

    Raises ExportError where a signature has none, or the outputs are not the same again.
    """
    first = _outputs(golden, dict(enumerate(cases)))
    second = _outputs(golden, {position: cases[position] for position in first})
    missing = set(golden.signatures) - {cases[position].signature for position in first}
    if missing:
        reason = "TensorFlow itself fails on random inputs, and there are no real ones; give representative inputs"
        raise ExportError("parity", reason, signature=min(missing))
    for position, outputs in first.items():
        for name, value in outputs.items():
            # Randomness would look like sensitivity, and any file would pass.
            again = second.get(position, {}).get(name)
            if again is None or not difference(again, value) <= relative * _magnitude(value):
                reason = (
                    "the model gives different outputs for the same inputs, so nothing can be proven; export it "
                    "without random ops (dropout in training mode?)"
                )
                raise ExportError("parity", reason, signature=cases[position].signature, tensor=name)
    return [(cases[position], outputs) for position, outputs in first.items()]


def _outputs(golden: SavedModelRuntime, cases: Mapping[int, Case]) -> dict[int, Arrays]:
    """By position, without the made-up inputs that the model does not take: a wrong index, a loop without end."""
    found = {}
    with golden.variables_changed(lambda array: array):  # a model that changes its variables leaves no trace
        for position, case in cases.items():
            try:
                seconds = None if case.kind in ("real", "random") else SECONDS
                found[position] = golden.run(case.signature, case.inputs, seconds)
            except Exception:  # TensorFlow raises many kinds
                if case.kind == "real":
                    raise
    return found


def _allowed(
    golden: SavedModelRuntime, cases: Sequence[tuple[Case, Arrays]], number_format: Format, slack: float
) -> list[dict[str, float]]:
    """The bound for each case and output."""
    rng = np.random.default_rng(0)
    computing = slack * number_format.rounding
    storing = computing if number_format.weights == number_format.rounding else COARSE * number_format.weights

    def weights(array: np.ndarray) -> np.ndarray:
        magnitude = np.abs(array.astype(np.float64))
        if number_format.weight_steps and array.ndim >= 2:  # the last axis of a kernel counts its output channels
            magnitude = magnitude.max(axis=tuple(range(array.ndim - 1)), initial=0.0)
        return _perturbed(array, storing * magnitude + COARSE * number_format.tiny, rng)

    def inputs(array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fV":
            return array
        magnitude = np.abs(array.astype(np.float64))
        return _perturbed(array, computing * (magnitude.max(initial=0.0) if number_format.steps else magnitude), rng)

    def constants(array: np.ndarray) -> np.ndarray:
        # With a scale for the whole tensor, a constant of few numbers is stored nearly exactly.
        exact = (number_format.steps and array.ndim < 2) or not np.isfinite(array).all()
        return array if exact else weights(array)

    moved = [{name: _Moved(value) for name, value in outputs.items()} for _, outputs in cases]
    coarse = number_format.steps or storing != computing  # else the inputs' roundings cover those of constants
    golden = golden.changed(constants if coarse else None, None if number_format.steps else computing)
    for _ in range(DRAWS):
        with golden.variables_changed(weights):
            for found, (case, _) in zip(moved, cases, strict=True):
                if case.kind == "nan":
                    continue
                changed = golden.run(case.signature, {name: inputs(array) for name, array in case.inputs.items()})
                for name, output in found.items():
                    output.see(changed[name])
    return _bounds([case for case, _ in cases], moved, computing)


def _bounds(cases: Sequence[Case], moved: Sequence[dict[str, _Moved]], relative: float) -> list[dict[str, float]]:
    """One bound for all calls of a signature with the same kind of inputs; a fraction is each call's own."""
    alike: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    for position, case in enumerate(cases):
        alike[case.signature, case.kind].append(position)
    bounds: list[dict[str, float]] = [{} for _ in cases]
    for positions in alike.values():
        for name in moved[positions[0]]:
            found = [moved[position][name] for position in positions]
            for position, bound in zip(positions, _bounds_of(found, relative), strict=True):
                bounds[position][name] = bound
    return bounds


def _bounds_of(found: Sequence[_Moved], relative: float) -> list[float]:
    if _is_float(found[0].value):
        return [max(output.distance + relative * _magnitude(output.value) for output in found)] * len(found)
    undecided = sum(int(output.elements.sum()) for output in found)
    if found[0].value.dtype.kind in "iu" and undecided > UNDECIDED * sum(output.value.size for output in found):
        return [1.0 + max(output.distance for output in found)] * len(found)
    return [output.fraction for output in found]


def _slack(golden: SavedModelRuntime, cases: Sequence[Case], number_format: Format) -> float:
    if number_format.steps:
        return COARSE
    kernels = [int(np.prod(v.shape[:-1])) for v in golden.variables if len(v.shape) >= 2]
    examples = [int(np.prod(array.shape[1:])) for case in cases for array in case.inputs.values()]
    return 16.0 + 2.0 * float(np.sqrt(max(kernels + examples, default=1)))


def _perturbed(array: np.ndarray, amplitude: Any, rng: np.random.Generator) -> np.ndarray:
    return (array.astype(np.float64) + amplitude * rng.uniform(-1, 1, array.shape)).astype(array.dtype)


def _magnitude(value: np.ndarray) -> float:
    """The largest finite magnitude; 0 for integers, which have no rounding."""
    if not _is_float(value):
        return 0.0
    magnitudes = np.abs(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))


def _run(file: Runtime, case: Case) -> Arrays:
    try:
        return file.run(case.signature, case.inputs)
    except Exception as error:  # the runtimes raise many kinds
        raise ExportError(
            "parity", f"the file fails on {case.kind} inputs that TensorFlow takes: {error}", signature=case.signature
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
