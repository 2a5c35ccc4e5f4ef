"""Which layers cost the accuracy of a quantised file, and which of them to keep in float."""

import dataclasses
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tftoolkit.export.convert import flatbuffer, selective
from tftoolkit.export.convert.convert import CALIBRATED, Calibration, check_calibration, convert
from tftoolkit.export.convert.decompose import decomposed_copy
from tftoolkit.export.convert.trace import Signatures, is_saved_model_path, saved_model_path, separate, trace
from tftoolkit.export.proof.opened import open_saved_model
from tftoolkit.export.proof.proof import Metric, check_metric, evaluated
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import worker
from tftoolkit.export.runtimes.lite_graph import LiteGraph, Values
from tftoolkit.export.runtimes.runtime import Arrays, LiteRuntime, Runtime, default_signature
from tftoolkit.export.runtimes.samples import Representative, examples_in, real_inputs

MAX_EXAMPLES = 64  # of which errors are taken; ranges are calibrated on all
Mode = Literal["int8", "int16x8", "dynamic"]


@dataclasses.dataclass(frozen=True)
class LayerError:
    """What one op of the file costs; ratios of root mean squares (rounding in float: about 1e-7, useless: 1).

    ``pattern``: for ``keep_float``; it finds this op alone. ``op``: its kind in TFLite. ``output``: how much the
    model's outputs change when this op alone computes in integers (the largest of several). ``own``: how much its own
    output does.
    """

    pattern: str
    op: str
    output: float
    own: float


@dataclasses.dataclass(frozen=True)
class QuantizationErrors:
    """One row for each op that computes in integers, the worst first; ``str()`` is a table, in decibels too."""

    rows: tuple[LayerError, ...]

    def __str__(self) -> str:
        table = [("error at the output", "SQNR", "own SQNR", "op", "keep_float pattern")]
        table += [(f"{r.output:.2%}", _decibels(r.output), _decibels(r.own), r.op, r.pattern) for r in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A quantised file that was made and run: what stayed in float, and its metric or error at the output."""

    keep_float: tuple[str, ...]
    value: float


@dataclasses.dataclass(frozen=True)
class Proposal:
    """``keep_float`` for ``tflite``; ``trials`` in the order made. ``str()`` says it for people."""

    keep_float: tuple[str, ...]
    trials: tuple[Trial, ...]
    errors: QuantizationErrors

    def __str__(self) -> str:
        lines = [f"{len(trial.keep_float):3} layers in float: {trial.value:.6g}" for trial in self.trials]
        return "\n".join([*lines, f"keep_float={list(self.keep_float)}"])


def quantization_errors(
    model: Any,
    representative: Representative,
    *,
    signatures: Signatures | None = None,
    quantize: Mode = "int8",
) -> QuantizationErrors:
    """What each layer costs: each op in turn computes in integers, everything after it in float.

    An op gets inputs that are rounded already, so that each rounding counts for the op whose output it is: passing
    ops (reshape, max pooling) cost nothing. The file is that of ``tflite(keep_float=...)``, made by ai-edge-quantizer.

    Args:
      model, signatures, representative: as in ``tflite``; of several signatures the default one is looked at, on up to
        64 examples.
      quantize: "int8", "int16x8" or "dynamic".

    Raises ExportError when the model can't be converted, ValueError for unusable arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _errors(_Case.prepare(model, representative, signatures, quantize, Path(folder)))


def propose_keep_float(
    model: Any,
    representative: Representative,
    *,
    signatures: Signatures | None = None,
    quantize: Mode = "int8",
    max_error: float | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
) -> Proposal:
    """Which layers to keep in float for a file that is good enough; each candidate is made and run.

    Layers are taken from the table of ``quantization_errors``, the worst first: as few as needed, found by bisection.
    Then each of them is put back if the file is good enough without it. The set is thus one from which none can be
    left out, not always the smallest there is.

    Args:
      model, representative, signatures, quantize: as in ``quantization_errors``.
      max_error: how much the outputs may differ from the model's, as a ratio of root mean squares; or
      metric, max_drop: as in ``tflite``: how much smaller than the model's the file's metric may be.

    Raises ExportError when the model can't be converted, ValueError for unusable arguments.
    """
    check_metric(metric, max_drop)
    if (max_error is None) == (max_drop is None):
        raise ValueError("say what is good enough: give max_error, or metric and max_drop")
    with tempfile.TemporaryDirectory() as folder:
        case = _Case.prepare(model, representative, signatures, quantize, Path(folder))
        errors = _errors(case)
        if metric is None:
            assert max_error is not None
            search = _Search(lambda kept: case.output_error(kept), lambda error: error <= max_error)
        else:
            least = evaluated(metric, case.original) - (max_drop or 0.0)
            search = _Search(lambda kept: evaluated(metric, case.runtime(kept)), lambda value: value >= least)
        kept = search.smallest(tuple(row.pattern for row in errors.rows))
        return Proposal(kept, tuple(search.trials), errors)


@dataclasses.dataclass(frozen=True)
class _Case:
    """A model as a float file, and what it takes to quantise and judge it."""

    original: Runtime
    float_file: bytes
    calibration: Calibration
    quantize: str
    folder: Path

    @classmethod
    def prepare(
        cls, model: Any, representative: Representative, signatures: Signatures | None, quantize: str, folder: Path
    ) -> "_Case":
        if quantize not in selective.RECIPES:
            raise ValueError(f"quantize must be one of {', '.join(selective.RECIPES)}, got {quantize!r}")
        if is_saved_model_path(model):
            native = saved_model_path(model, signatures)
        else:
            native = trace(model, signatures, folder / "native")
        original = open_saved_model(native)
        real = real_inputs(representative, original.signatures)
        if quantize in CALIBRATED:
            check_calibration(quantize, real, original.signatures)
        if not real.get(default_signature(original.signatures)):
            raise ValueError("representative holds no inputs for the default signature: errors are taken on real ones")
        decomposed = decomposed_copy(native, folder / "decomposed", "quantization errors")
        if is_saved_model_path(model):
            decomposed = separate(decomposed, folder / "separate")
        case = cls(original, convert(decomposed, original.signatures), real, quantize, folder)
        flatbuffer.inspect(case._written(case.float_file))  # refuses what is rounded already
        return case

    def quantized(self, keep_float: Sequence[str]) -> bytes:
        return worker.call(selective.quantize, self.float_file, self.quantize, keep_float, self.calibration, False)

    def runtime(self, keep_float: Sequence[str]) -> Runtime:
        return LiteRuntime(self._written(self.quantized(keep_float)))

    def output_error(self, keep_float: Sequence[str]) -> float:
        """The largest relative error of an output on the examples."""
        file = self.runtime(keep_float)
        sums = _Sums()
        for inputs in self.examples:
            sums.add(file.run(self.signature, inputs), self.original.run(self.signature, inputs))
        return sums.worst

    @property
    def signature(self) -> str:
        return default_signature(self.original.signatures)

    @property
    def examples(self) -> list[Arrays]:
        chosen: list[Arrays] = []
        for arrays in self.calibration[self.signature]:
            if sum(map(examples_in, chosen)) < MAX_EXAMPLES:
                chosen.append(arrays)
        return chosen

    def _written(self, content: bytes) -> Path:
        path = self.folder / "file.tflite"
        path.write_bytes(content)
        return path


class _Sums:
    """Squares of errors and of what they are errors of, by tensor."""

    def __init__(self) -> None:
        self._squares: dict[Any, np.ndarray] = {}

    def add(self, actual: Mapping[Any, np.ndarray], expected: Mapping[Any, np.ndarray]) -> None:
        for key, exact in expected.items():
            if exact.dtype == np.float32:
                error = np.float64(actual[key]) - exact
                squares = np.array([np.sum(np.square(error)), np.sum(np.square(np.float64(exact)))])
                self._squares[key] = self._squares.get(key, 0.0) + squares

    @property
    def worst(self) -> float:
        return max((_ratio(*squares) for squares in self._squares.values()), default=0.0)


def _ratio(error: float, signal: float) -> float:
    if error == 0.0:
        return 0.0
    return math.sqrt(error / signal) if signal else math.inf


def _decibels(ratio: float) -> str:
    return f"{-20 * math.log10(ratio):.1f} dB" if ratio else "exact"


class _Search:
    """Finds a small set of layers by trying; ``value`` of a set of layers, and whether a value is good enough."""

    def __init__(self, value: Callable[[tuple[str, ...]], float], good: Callable[[float], bool]) -> None:
        self._value = value
        self._good = good
        self.trials: list[Trial] = []

    def _enough(self, kept: tuple[str, ...]) -> bool:
        self.trials.append(Trial(kept, self._value(kept)))
        return self._good(self.trials[-1].value)

    def smallest(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """A prefix of ``layers`` that is enough, without those of it that aren't needed."""
        low, high = -1, 0  # a number of layers that isn't enough, and one to try
        while high < len(layers) and not self._enough(layers[:high]):
            low, high = high, min(2 * high or 1, len(layers))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._enough(layers[:middle]) else (middle, high)
        kept = layers[:high]
        # Without the last one it isn't enough: the bisection has tried that.
        for layer in reversed(kept[:-1]):
            fewer = tuple(other for other in kept if other != layer)
            if self._enough(fewer):
                kept = fewer
        if kept == layers:  # that is the model itself, which wasn't tried
            raise ExportError("metric", "no quantised file is good enough, not even with one op in integers")
        return kept


def _errors(case: _Case) -> QuantizationErrors:
    exact = LiteGraph(case.float_file, case.signature)
    rounded = LiteGraph(case.quantized([]), case.signature)
    by_output = {rounded.name(op.outputs[0]): op for op in rounded.graph.operators if not rounded.is_conversion(op)}
    runs = [exact.run_all(inputs) for inputs in case.examples]
    rows = []
    for op in exact.graph.operators:
        twin = by_output.get(exact.name(op.outputs[0]))
        if twin is not None and any(rounded.scale(index) for index in (*twin.inputs, *twin.outputs)):
            output, own = _cost(exact, op, rounded, twin, runs)
            pattern = f"^{re.escape(exact.name(op.outputs[0]))}$"
            rows.append(LayerError(pattern, exact.kind(op), output, own))
    if not rows:
        raise ExportError("convert", "ai-edge-quantizer left every op in float, so there is nothing to compare")
    return QuantizationErrors(tuple(sorted(rows, key=lambda row: (-row.output, -row.own))))


def _cost(exact: LiteGraph, op: Any, rounded: LiteGraph, twin: Any, runs: Sequence[Values]) -> tuple[float, float]:
    """Error at the model's outputs, and at the op's own."""
    alone, twin_alone, rest = exact.only(op), rounded.only(twin), exact.without(op)
    at_output, own = _Sums(), _Sums()
    for values in runs:
        given = [i for i in op.inputs if i in values]
        integers = {there: rounded.to_stored(there, values[here]) for here, there in _pairs(op, twin, values)}
        inputs = {here: rounded.to_numbers(there, integers[there]) for here, there in _pairs(op, twin, values)}
        expected = alone({i: inputs.get(i, values[i]) for i in given})
        found = twin_alone(integers)
        actual = {
            here: rounded.to_numbers(there, found[there]) for here, there in zip(op.outputs, twin.outputs, strict=True)
        }
        own.add(actual, expected)
        model_inputs = {i: values[i] for i in exact.graph.inputs}
        at_output.add(rest(model_inputs | actual), rest(model_inputs | expected))
    return at_output.worst, own.worst


def _pairs(op: Any, twin: Any, values: Values) -> list[tuple[int, int]]:
    return [(here, there) for here, there in zip(op.inputs, twin.inputs, strict=False) if here in values]
