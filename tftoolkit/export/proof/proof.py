"""The gate: what every file passes before it is written, and what ``verify`` repeats.

TensorFlow is imported only for SavedModels: a .tflite or .onnx file with its proof beside it needs its runtime alone.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tftoolkit.export.convert.formats import FLOAT16_WEIGHTS, Format
from tftoolkit.export.proof import golden as stored
from tftoolkit.export.proof import memory
from tftoolkit.export.proof.opened import Opened, open_file, open_saved_model
from tftoolkit.export.proof.parity import GoldenCase, compare, refuse
from tftoolkit.export.proof.rehearsal import rehearse_taken
from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row
from tftoolkit.export.runtimes import delegate
from tftoolkit.export.runtimes.made_up import NOT_FINITE, Ranges, cases, latency_inputs
from tftoolkit.export.runtimes.runtime import Arrays, Runtime, Signature, default_signature
from tftoolkit.export.runtimes.samples import Case, Representative, real_inputs
from tftoolkit.export.staging import stage

if TYPE_CHECKING:
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

HALF_MAX = 65504.0  # of float16
# predict(inputs, signature=default) -> outputs, both dicts of named arrays; the metric is better when larger.
Metric = Callable[[Callable[..., Arrays]], float]


def verify(
    path: str | os.PathLike[str],
    *,
    golden: Any = None,
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    input_ranges: Ranges | None = None,
    native: bool = False,
) -> ExportReport:
    """Proves a SavedModel, .tflite or .onnx file in its own runtime and returns what was measured.

    Args:
      path: a SavedModel folder, a .tflite or an .onnx file.
      golden: what the file must compute: a SavedModel folder, or a model that says what it accepts. None: the inputs
        and outputs that its export stored beside it (TensorFlow is then not needed). Where there are none, there is
        nothing to compare with: the file is opened and run, and parity stays unproven.
      representative: real inputs as dicts of named arrays (iterable, or callable returning one; or a dict from
        signature to either). A calibrated file (int8, int16x8) needs them when ``golden`` is given: it promises nothing
        outside its calibrated range.
      metric: ``metric(predict) -> float``, larger is better, with ``predict(inputs, signature=default) -> outputs``.
      max_drop: how much smaller the file's metric may be than the golden model's.
      input_ranges: from the name of an input to (least, greatest), where the model never meets other numbers. The
        made-up inputs keep to them; the others hold any numbers there are (integers of both signs and at the limits of
        their type, floats that are large, infinite or NaN), as far as TensorFlow takes them.
      native: run the native code in ``NAME.tflite.delegate``, which a file exported with ``ops="native"`` needs; only
        for files that you trust.

    Raises ExportError naming stage, signature, tensor and reason; FileNotFoundError, ValueError for unusable arguments;
    RuntimeError where the process that measures the file's memory fails.
    """
    check_metric(metric, max_drop)
    if max_drop is not None and golden is None:
        raise ValueError("max_drop compares with the golden model; give golden")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such file: {file}")
    if delegate.folder_of(file).is_dir() and not native:
        raise ValueError(
            f"{file.name} needs the native code in {delegate.folder_of(file)}; if you trust it: native=True"
        )
    if golden is None:
        return _proven_again(file, representative, metric)
    from tftoolkit.export.convert.freeze import frozen
    from tftoolkit.export.convert.trace import trace

    with tempfile.TemporaryDirectory() as folder:
        source = Path(golden) if isinstance(golden, str | os.PathLike) else trace(golden, None, Path(folder) / "golden")
        if (source / "saved_model.pb").is_file():
            source = frozen(source, Path(folder) / "frozen")  # variables that can be perturbed, as the bound needs it
        return prove(file, open_saved_model(source), representative, metric, max_drop, input_ranges).report


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was found out about one file, and what it takes to find it out again."""

    row: Row
    cases: Sequence[GoldenCase]
    signatures: Mapping[str, Signature]

    @property
    def report(self) -> ExportReport:
        return ExportReport((self.row,))


def prove(
    path: Path,
    golden: SavedModelRuntime,
    representative: Representative | None,
    metric: Metric | None,
    max_drop: float | None,
    ranges: Ranges | None = None,
    label: str | None = None,
    known: Sequence[GoldenCase] | None = None,
) -> Proof:
    """Structure, parity, metric, latency and memory of one file; ``label`` is its name in the report.

    ``known``: the calls to prove it on, in this order, for a file whose calls depend on each other.
    """
    name = label or path.name
    ranges = _checked_ranges(ranges, golden.signatures)
    with stage("structure", name):
        opened = open_file(path, golden, ranges)
        _same_signatures(golden.signatures, opened.file.signatures)
    real = real_inputs(representative, opened.file.signatures)
    lacking = sorted(set(opened.file.signatures) - {key for key, items in real.items() if items})
    if opened.format.calibrated and lacking:
        raise ValueError(
            f"an {opened.format.name} file is proven on real inputs: give representative for signatures {lacking}"
        )
    with stage("parity", name):
        from tftoolkit.export.proof.bounds import golden_cases, idle  # needs TensorFlow

        tried = [] if known else cases(_ranked(opened.file.signatures, golden.signatures), real, ranges=ranges)
        tried = [case for case in tried if case.kind not in idle(opened.format)]
        found = known or golden_cases(golden, tried, opened.format)
        rehearse_taken(path, [item.case for item in found])
        try:
            comparison = compare(opened.file, found, opened.format, opened.endless)
            if max_drop is None and not known:
                refuse(comparison.unproven, opened.format)
        except ExportError as error:
            raise _explained(error, golden, opened.format) from None
    value, golden_value = None, None
    if metric is not None:
        with stage("metric", name):
            value, golden_value = _metric(metric, opened.file, golden, max_drop)
    row = _measured(path, name, opened, real or _inputs(found), comparison.checks)
    unproven = tuple(map(str, comparison.unproven))
    row = dataclasses.replace(
        row, metric=value, golden_metric=golden_value, dropped=_dropped(tried, found), unproven=unproven
    )
    return Proof(row, found, opened.file.signatures)


def _proven_again(path: Path, representative: Representative | None, metric: Metric | None) -> ExportReport:
    """Against what is stored beside the file, where there is something."""
    known = stored.load(path)
    checks: tuple[Check, ...] = ()
    with stage("structure", path.name):
        opened = open_file(path, None, {})
        signatures = opened.file.signatures
        if known and known[1]["signatures"] != stored.described(signatures):
            raise ExportError("structure", f"signatures are {stored.described(signatures)}, not those of the proof")
    real = real_inputs(representative, signatures)
    if known:
        with stage("parity", path.name):
            comparison = compare(opened.file, known[0], opened.format, opened.endless)
            checks = comparison.checks
            if not known[1]["measured"].get("unproven"):  # else a metric decided at the export
                refuse(comparison.unproven, opened.format)
        for item in known[0]:
            if item.case.kind == "real":
                real.setdefault(item.case.signature, []).append(item.case.inputs)
    row = _measured(path, path.name, opened, real or _inputs(known[0] if known else ()), checks)
    return ExportReport((dataclasses.replace(row, metric=evaluated(metric, opened.file) if metric else None),))


def _explained(error: ExportError, golden: SavedModelRuntime, number_format: Format) -> ExportError:
    """With the constants that float16 cannot hold, where those are what makes a file differ."""
    large = golden.constants_beyond(HALF_MAX) if number_format is FLOAT16_WEIGHTS and error.stage == "parity" else []
    if not large:
        return error
    stored = ", ".join(f"{value:g} is stored as {np.sign(value) * HALF_MAX:g}" for value in large[:3])
    cause = (
        f"{error.reason}. In float16 the model's constant {stored}: if it masks something, use one such as -3e4, and "
        f"keep the inputs far below it (input_ranges)"
    )
    return ExportError(error.stage, cause, signature=error.signature, tensor=error.tensor)


def _ranked(file: Mapping[str, Signature], golden: Mapping[str, Signature]) -> dict[str, Signature]:
    """The file's signatures, with the model's shapes where the file does not even tell the rank."""
    found = {}
    for name, signature in file.items():
        pairs = zip(signature.inputs, golden[name].inputs, strict=True)
        inputs = (
            ours if ours.shape is not None else dataclasses.replace(ours, shape=theirs.shape) for ours, theirs in pairs
        )
        found[name] = dataclasses.replace(signature, inputs=tuple(inputs))
    return found


def _checked_ranges(ranges: Any, signatures: Mapping[str, Signature]) -> Ranges:
    """Raises ValueError where they are not a dict from inputs to two numbers."""
    if ranges is None:
        return {}
    if not isinstance(ranges, Mapping):
        raise ValueError(f"input_ranges must be a dict from an input's name to (least, greatest), got {ranges!r}")
    numbers = {t.name for signature in signatures.values() for t in signature.inputs if t.dtype.kind in "iufV"}
    for name, limits in ranges.items():
        if name not in numbers:
            raise ValueError(f"input_ranges names {name!r}; the inputs that are numbers are {sorted(numbers)}")
        fits = isinstance(limits, list | tuple) and len(limits) == 2 and all(map(np.isscalar, limits))
        if not fits or not -np.inf < limits[0] <= limits[1] < np.inf:
            raise ValueError(f"input_ranges[{name!r}] must be (least, greatest), both finite, got {limits!r}")
    return dict(ranges)


def _dropped(tried: Sequence[Case], found: Sequence[GoldenCase]) -> dict[str, list[str]]:
    """By signature the kinds of made-up inputs of which no call was left."""
    proven = {(item.case.signature, item.case.kind) for item in found}
    left: dict[str, list[str]] = {}
    for signature, kind in dict.fromkeys((case.signature, case.kind) for case in tried):
        if (signature, kind) not in proven:
            left.setdefault(signature, []).append(kind)
    return left


def _inputs(found: Sequence[GoldenCase]) -> dict[str, list[Arrays]]:
    """By signature what the file was called with; made-up inputs that TensorFlow refused are not among them."""
    inputs: dict[str, list[Arrays]] = {}
    for item in found:
        if item.case.kind not in NOT_FINITE:
            inputs.setdefault(item.case.signature, []).append(item.case.inputs)
    return inputs


def _measured(
    path: Path, name: str, opened: Opened, real: Mapping[str, list[Arrays]], checks: tuple[Check, ...]
) -> Row:
    signatures = opened.file.signatures
    default = default_signature(signatures)
    with stage("latency", name):
        inputs = latency_inputs(signatures[default], real.get(default, []))
        latency = {threads: _latency(runtime, default, inputs) for threads, runtime in opened.runtimes.items()}
        peak = None if path.is_dir() else memory.peak(path, default, inputs)
    texts = {
        key: {side: [str(tensor) for tensor in getattr(signature, side)] for side in ("inputs", "outputs")}
        for key, signature in signatures.items()
    }
    return Row(name, opened.kind, _size(path), latency, checks, None, None, peak, texts)


def _same_signatures(golden: Mapping[str, Signature], file: Mapping[str, Signature]) -> None:
    if set(golden) != set(file):
        raise ExportError("structure", f"the file has signatures {sorted(file)}, the model {sorted(golden)}")
    for name, expected in golden.items():
        for side in ("inputs", "outputs"):
            wanted, found = getattr(expected, side), getattr(file[name], side)
            if [tensor.name for tensor in wanted] != [tensor.name for tensor in found]:
                raise ExportError(
                    "structure",
                    f"{side} are {[tensor.name for tensor in found]}; the model has {[t.name for t in wanted]}",
                    signature=name,
                )
            for ours, theirs in zip(wanted, found, strict=True):
                if ours.dtype != theirs.dtype or not ours.accepts(theirs.shape):
                    raise ExportError(
                        "structure", f"is {theirs}; the model has {ours}", signature=name, tensor=ours.name
                    )


def check_metric(metric: Metric | None, max_drop: float | None) -> None:
    if max_drop is not None and metric is None:
        raise ValueError("max_drop needs a metric: give metric=function(predict) -> float")


def _metric(metric: Metric, file: Runtime, golden: SavedModelRuntime, max_drop: float | None) -> tuple[float, float]:
    value = evaluated(metric, file)
    golden_value = evaluated(metric, golden)
    if max_drop is not None and not golden_value - value <= max_drop:
        raise ExportError("metric", f"fell from {golden_value:.6g} to {value:.6g}; max_drop allows {max_drop:g}")
    return value, golden_value


def evaluated(metric: Metric, runtime: Runtime) -> float:
    """The metric of a file or model; without a signature, ``predict`` runs its default one."""
    default = default_signature(runtime.signatures)

    def predict(inputs: Mapping[str, Any], signature: str = default) -> Arrays:
        return runtime.run(signature, inputs)

    return float(metric(predict))


def _latency(runtime: Runtime, signature: str, inputs: Arrays, calls: int = 50, seconds: float = 1.0) -> Latency:
    """Of up to ``calls`` calls within ``seconds``, after three to warm up."""
    for _ in range(3):
        runtime.run(signature, inputs)
    times: list[float] = []
    while len(times) < calls and (sum(times) < seconds or len(times) < 3):
        start = time.perf_counter()
        runtime.run(signature, inputs)
        times.append(time.perf_counter() - start)
    median, p95 = np.percentile(np.array(times) * 1e3, [50, 95])
    return Latency(float(median), float(p95))


def _size(path: Path) -> int:
    return (
        sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) if path.is_dir() else path.stat().st_size
    )
