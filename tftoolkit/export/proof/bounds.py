"""What a file must compute: TensorFlow's outputs, and a bound derived from the file's number format.

A format rounds the numbers of a model: float32 by at most half a unit in the last place (a relative
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
perturbed by 4 of their own roundings: one would be the format's, the others make up for drawing at random. With 4 bits
they may not: a quarter of a weight turns attention to other positions altogether, and moves the outputs no further than
a single rounding does, so that a right file's error and the largest of the draws are alike (0.77 to 1.05 of each other
in the recipe text_gpt, on caches at the ends of their range). There what a single rounding moves is allowed on top.

Integer, bool and string outputs (a class) are right or wrong as a whole, so elements are counted: those that differ in
the file, over all calls with one kind of inputs, must not be more than those that one or another perturbed run changed.
With 26 calls of 4 examples, of which 3 are close decisions, 3 of 104 elements may differ (2.9%); a file that is off by
one everywhere differs in 100%. Where perturbation changes more than half of all elements (a picture in uint8 computed
in int8), counting would allow nearly anything: then the largest difference counts, as with floats, and may be one more
than the largest that perturbation caused, since each of the two was truncated.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.export.convert.formats import Format
from tftoolkit.export.proof.distance import difference, distance, is_float
from tftoolkit.export.proof.parity import GoldenCase
from tftoolkit.export.proof.rehearsal import taken_by_tensorflow
from tftoolkit.export.report import ExportError, first_line
from tftoolkit.export.runtimes.made_up import INTEGERS, LIMITS, NOT_FINITE
from tftoolkit.export.runtimes.runtime import Arrays
from tftoolkit.export.runtimes.samples import Case

if TYPE_CHECKING:
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

DRAWS = 4
COARSE = 4.0
VERY_COARSE = 1 / 100  # roundings of weights from which on a model may no longer move in proportion to them
SECONDS = 20.0  # for a call on zeros, large numbers, NaN and integers, on which a loop may have no end
INFINITE_SECONDS = 2.0  # on infinities, where many have none
UNDECIDED = 0.5  # the fraction of elements from which on counting them says nothing
COUNTS = 127  # whole numbers up to this are what an integer format stores exactly enough: a mask, a class
PROVING = ("real", "random", *INTEGERS)  # a signature needs a call of one of these kinds
ASKING = {"IsInf", "IsNan", "IsFinite"}


def golden_cases(golden: SavedModelRuntime, cases: Sequence[Case], number_format: Format) -> list[GoldenCase]:
    """The cases that TensorFlow can run. Raises ExportError where a signature has none, or its outputs are random."""
    slack = _slack(golden, cases, number_format)
    tried = taken_by_tensorflow(golden.path, [case for case in cases if case.kind not in idle(number_format)])
    runnable = _golden(golden, tried, slack * number_format.rounding)
    if number_format.steps:  # what overflows in TensorFlow saturates in integers, which have no infinity
        runnable = [(case, outputs) for case, outputs in runnable if case.kind != "large" or _finite(outputs)]
    # A signature that trains may ask whether its gradients are finite; one that infers does not thereby.
    asking = {name for name in golden.signatures if golden.op_types(name) & ASKING}
    compares = golden.has_infinite_constants()
    allowed = _allowed(golden, runnable, number_format, slack)
    found = []
    for (case, outputs), measured in zip(runnable, allowed, strict=True):
        bounds: dict[str, float | None] = dict(measured)
        asks = case.signature in asking
        if case.kind in NOT_FINITE:
            bounds = {name: _of_class(case.kind, value, asks, asks or compares) for name, value in outputs.items()}
        # Calibrated activations saturate outside their range, by design.
        unbounded = number_format.calibrated and case.kind != "real"
        found.append(GoldenCase(case, outputs, dict.fromkeys(bounds) if unbounded else bounds, asks))
    return found


def idle(number_format: Format) -> set[str]:
    """The kinds of inputs of which the format promises nothing.

    Integers have no infinity, and calibrated ones end where the real inputs do.
    """
    return ({"inf"} if number_format.steps else set()) | ({*INTEGERS, LIMITS} if number_format.calibrated else set())


def _of_class(kind: str, value: np.ndarray, asks: bool, compares: bool) -> float | None:
    """The fraction of elements that may be finite, infinite or NaN otherwise than TensorFlow's; None: any.

    How NaN travels is not promised (a ReLU of infinity less infinity is 0 here and infinite there), nor what an integer
    is made of an infinity; but to a model that ``asks`` (is_nan, is_inf, is_finite) they are inputs like others, and so
    is infinity to one that ``compares`` with it.
    """
    return 0.0 if asks or (kind == "inf" and compares and value.dtype.kind in "fcVb") else None


def _finite(outputs: Arrays) -> bool:
    return all(np.isfinite(value).all() for value in outputs.values() if value.dtype.kind in "fc")


class _Moved:
    """How far the perturbed runs were from an output, and for other than floats which elements differed in any."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.distance = 0.0
        self.elements = np.zeros(value.shape, bool)

    def see(self, changed: np.ndarray) -> None:
        if not is_float(self.value):
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
    first, refusals = _outputs(golden, dict(enumerate(cases)))
    second, _ = _outputs(golden, {position: cases[position] for position in first})
    proving = {cases[position].signature for position in first if cases[position].kind in PROVING}
    for signature in sorted(set(golden.signatures) - proving):
        why = f" ({refusals[signature]})" if signature in refusals else ""
        reason = (
            f"TensorFlow itself fails on random inputs{why}, and there are no real ones; give representative inputs"
        )
        raise ExportError("parity", reason, signature=signature)
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


def _outputs(golden: SavedModelRuntime, cases: Mapping[int, Case]) -> tuple[dict[int, Arrays], dict[str, str]]:
    """By position, without the made-up inputs that the model does not take: a wrong index, a loop without end.

    And by signature what TensorFlow said of random ones.
    """
    found: dict[int, Arrays] = {}
    refusals: dict[str, str] = {}
    with golden.variables_changed(lambda array: array):  # a model that changes its variables leaves no trace
        for position, case in cases.items():
            try:
                seconds = None if case.kind in ("real", "random") else SECONDS
                seconds = INFINITE_SECONDS if case.kind == "inf" else seconds
                found[position] = golden.run(case.signature, case.inputs, seconds)
            except Exception as error:  # TensorFlow raises many kinds
                if case.kind == "real":
                    raise
                if case.kind == "random":
                    refusals[case.signature] = first_line(error)
    return found, refusals


def _allowed(
    golden: SavedModelRuntime, cases: Sequence[tuple[Case, Arrays]], number_format: Format, slack: float
) -> list[dict[str, float]]:
    """The bound for each case and output."""
    rounding = _Rounding(number_format, slack)
    golden = golden.changed(
        rounding.constants if rounding.is_coarse else None, None if number_format.steps else rounding.computing
    )
    moved = _moved(golden, cases, rounding, DRAWS)
    if number_format.weights > VERY_COARSE:
        once = _moved(golden, cases, rounding.stored_once(), DRAWS // 2)
        for found, more in zip(moved, once, strict=True):
            for name, output in found.items():
                output.distance += more[name].distance
    return _bounds([case for case, _ in cases], moved, rounding.computing)


class _Rounding:
    """Moves numbers at random as far as a format's roundings may."""

    def __init__(self, number_format: Format, slack: float) -> None:
        self._format, self._rng = number_format, np.random.default_rng(0)
        self.computing = slack * number_format.rounding
        self.is_coarse = number_format.steps or number_format.weights != number_format.rounding
        same = number_format.weights == number_format.rounding
        self._storing = self.computing if same else COARSE * number_format.weights

    def stored_once(self) -> _Rounding:
        """Weights are moved as far as one rounding of theirs may."""
        found = copy.copy(self)
        found._storing = self._format.weights
        return found

    def weights(self, array: np.ndarray) -> np.ndarray:
        magnitude = np.abs(array.astype(np.float64))
        if self._format.weight_steps and array.ndim >= 2:  # the last axis of a kernel counts its output channels
            magnitude = magnitude.max(axis=tuple(range(array.ndim - 1)), initial=0.0)
        return _perturbed(array, self._storing * magnitude + COARSE * self._format.tiny, self._rng)

    def inputs(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fV" or _counts(array):
            return array
        magnitude = np.abs(array.astype(np.float64))
        largest = magnitude.max(initial=0.0) if self._format.steps else magnitude
        return _perturbed(array, self.computing * largest, self._rng)

    def constants(self, array: np.ndarray) -> np.ndarray:
        # With a scale for the whole tensor, a constant of few numbers is stored nearly exactly.
        exact = (self._format.steps and array.ndim < 2) or not np.isfinite(array).all()
        return array if exact else self.weights(array)


def _moved(
    golden: SavedModelRuntime, cases: Sequence[tuple[Case, Arrays]], rounding: _Rounding, draws: int
) -> list[dict[str, _Moved]]:
    """How far so many draws moved each case's outputs."""
    moved = [{name: _Moved(value) for name, value in outputs.items()} for _, outputs in cases]
    for _ in range(draws):
        with golden.variables_changed(rounding.weights):
            for found, (case, _) in zip(moved, cases, strict=True):
                if case.kind in NOT_FINITE:
                    continue
                nearby = {name: rounding.inputs(array) for name, array in case.inputs.items()}
                for name, value in _run_nearby(golden, case, nearby).items():
                    found[name].see(value)
    return moved


def _counts(array: np.ndarray) -> bool:
    """Whether the numbers stand for whole ones, as those of a mask do: no format rounds them."""
    wide = array.astype(np.float64)
    return bool(np.all((wide == np.round(wide)) & (np.abs(wide) <= COUNTS)))


def _run_nearby(golden: SavedModelRuntime, case: Case, nearby: Arrays) -> Arrays:
    """Where the model refuses inputs that were moved (it asserts a range), with the inputs as they are."""
    try:
        return golden.run(case.signature, nearby)
    except Exception:  # TensorFlow raises many kinds
        return golden.run(case.signature, case.inputs)


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
    if is_float(found[0].value):
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
    if not is_float(value):
        return 0.0
    magnitudes = np.abs(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))
