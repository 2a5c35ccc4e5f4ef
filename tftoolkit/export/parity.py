"""Whether a file computes what TensorFlow computes, within a bound derived from the file's number format.

The bound. A format rounds the numbers of a model: float32 by at most half a unit in the last place (a relative
2^-24), int8 with one scale per channel by half a step (1/254 of the largest magnitude in the channel). Both programs
are right when each equals the exact function of inputs and weights that were perturbed by a few such roundings
(backward error; Higham, Accuracy and Stability of Numerical Algorithms, ch. 1 and 3). So we measure what that does: the
golden model runs with its inputs and weights perturbed at random by ``slack`` roundings, several times, and the
largest change seen in an output, plus ``slack`` roundings of the output's own magnitude, is what the file may be off.
A badly conditioned model thus gets the room it needs, and a well conditioned one none to hide an error in. Weights are
the variables and, where the format stores them more coarsely than float32, the constants.

``slack`` stands for the roundings of the activations, which cannot be perturbed from outside. For floating point, sums
over n terms in another order differ by a small multiple of sqrt(n) roundings (Higham and Mary, 2019): 16 + 2 sqrt(n)
with the largest n among weights and inputs. For integers each layer adds about one rounding of its own, independent of
the others: 4 covers some 16 layers. tools/random_models measures how much of the bound right files need; half of the
slack refused some of them (a normalisation of numbers that are nearly equal, an exponential of an exponential). Weights
that are stored more coarsely than computed with (float16, dynamic, int16x8) are perturbed by 4 of their own roundings:
one would be the format's, the others make up for drawing at random.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.export.formats import Format
from tftoolkit.export.report import Check, ExportError
from tftoolkit.export.runtime import Arrays, Runtime
from tftoolkit.export.samples import Case

if TYPE_CHECKING:
    from tftoolkit.export.tf_runtime import SavedModelRuntime

DRAWS = 4
COARSE = 4.0


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """A case with TensorFlow's outputs, and how far off the file may be; None where no bound can be derived."""

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


def compare(file: Runtime, golden: Sequence[GoldenCase], format_name: str) -> tuple[Check, ...]:
    """Runs every case in the file. Raises ExportError for the first output that is off by more than its bound."""
    checks: dict[tuple[str, str, str], Check] = {}
    for item in golden:
        case = item.case
        actual = _run(file, case)
        for name, value in item.outputs.items():
            _same_shape(case, name, value, actual[name])
            if case.kind == "nan":
                error = float(np.mean(_is_nan(value) != _is_nan(actual[name]))) if value.size else 0.0
            else:
                error = difference(actual[name], value)
            check = Check(case.signature, name, case.kind, error, item.bounds[name])
            key = (case.signature, name, case.kind)
            checks[key] = _worse(checks[key], check) if key in checks else check
    for check in checks.values():
        judge(check, format_name)
    return tuple(checks.values())


def _is_nan(value: np.ndarray) -> np.ndarray:
    return np.isnan(value) if value.dtype.kind in "fc" else np.zeros(value.shape, bool)


def _worse(one: Check, other: Check) -> Check:
    bound = None if one.bound is None or other.bound is None else max(one.bound, other.bound)
    return dataclasses.replace(one, error=max(one.error, other.error), bound=bound)


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
    """max|actual - expected|, infinite where only one is finite; for other than floats the fraction that differs."""
    if not expected.size:
        return 0.0
    if expected.dtype.kind not in "fcV":  # V: bfloat16
        return float(np.mean(actual != expected))
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(gap), np.inf, gap)))


def _golden(golden: SavedModelRuntime, cases: Sequence[Case], relative: float) -> list[tuple[Case, Arrays]]:
    """The cases that TensorFlow can run, with its outputs.

    Raises ExportError where a signature has none, or the outputs are not the same again.
    """
    first, second = _outputs(golden, cases), _outputs(golden, cases)
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


def _outputs(golden: SavedModelRuntime, cases: Sequence[Case]) -> dict[int, Arrays]:
    """By position, without the made-up inputs that the model does not take (an index out of range, for instance)."""
    found = {}
    with golden.variables_changed(lambda array: array):  # a model that changes its variables leaves no trace
        for position, case in enumerate(cases):
            try:
                found[position] = golden.run(case.signature, case.inputs)
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

    moved: list[dict[str, float]] = [dict.fromkeys(outputs, 0.0) for _, outputs in cases]
    if number_format.steps or storing != computing:  # in floating point the inputs' roundings cover those
        golden = golden.constants_changed(constants)
    for _ in range(DRAWS):
        with golden.variables_changed(weights):
            for largest, (case, outputs) in zip(moved, cases, strict=True):
                if case.kind == "nan":
                    continue
                changed = golden.run(case.signature, {name: inputs(array) for name, array in case.inputs.items()})
                for name, value in outputs.items():
                    largest[name] = max(largest[name], difference(changed[name], value))
    return [
        {name: largest[name] + computing * _magnitude(value) for name, value in outputs.items()}
        for largest, (_, outputs) in zip(moved, cases, strict=True)
    ]


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
    if value.dtype.kind not in "fcV":
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
