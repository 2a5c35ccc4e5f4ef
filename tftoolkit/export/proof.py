"""The gate: what every file passes before it is written, and what ``verify`` repeats."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.export import decompose, flatbuffer, library
from tftoolkit.export.parity import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Format, parity
from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row
from tftoolkit.export.runtime import (
    Arrays,
    LiteRuntime,
    Runtime,
    SavedModelRuntime,
    Signature,
    default_signature,
)
from tftoolkit.export.samples import Representative, cases, latency_inputs, real_inputs
from tftoolkit.export.staging import stage
from tftoolkit.export.trace import trace

# predict(inputs, signature=default) -> outputs, both dicts of named arrays; the metric is better when larger.
Metric = Callable[[Callable[..., Arrays]], float]


def verify(
    path: str | os.PathLike[str],
    *,
    golden: Any = None,
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
) -> ExportReport:
    """Proves a SavedModel or a .tflite file in its own runtime and returns what was measured.

    Args:
      path: a SavedModel folder or a .tflite file.
      golden: what the file must compute: a SavedModel folder, or a model that says what it accepts. Without it there
        is nothing to compare with: the file is opened and run, and parity stays unproven.
      representative: real inputs as dicts of named arrays (iterable, or callable returning one; or a dict from
        signature to either). An int8 file needs them: it promises nothing outside its calibrated range.
      metric: ``metric(predict) -> float``, larger is better, with ``predict(inputs, signature=default) -> outputs``.
      max_drop: how much smaller the file's metric may be than the golden model's.

    Raises ExportError naming stage, signature, tensor and reason; ValueError for unusable arguments.
    """
    check_metric(metric, max_drop)
    if max_drop is not None and golden is None:
        raise ValueError("max_drop compares with the golden model; give golden")
    if golden is None:
        return prove(Path(path), None, representative, metric, max_drop)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(golden) if isinstance(golden, str | os.PathLike) else trace(golden, None, Path(folder) / "golden")
        return prove(Path(path), open_saved_model(source), representative, metric, max_drop)


def open_saved_model(folder: Path) -> SavedModelRuntime:
    """Loads a SavedModel after the custom ops in it are registered."""
    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(f"{folder} is not a SavedModel: it has no saved_model.pb")
    decompose.custom_ops(decompose.op_types(folder), library.find)
    return SavedModelRuntime(folder)


def prove(
    path: Path,
    golden: SavedModelRuntime | None,
    representative: Representative | None,
    metric: Metric | None,
    max_drop: float | None,
    label: str | None = None,
) -> ExportReport:
    """Structure, parity, metric and latency of one file; ``label`` is its name in the report."""
    name = label or path.name
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    with stage("structure", name):
        runtimes, kind, number_format = _open(path, golden)
        file = next(iter(runtimes.values()))
        if golden is not None:
            _same_signatures(golden.signatures, file.signatures)
    real = real_inputs(representative, file.signatures)
    checks: tuple[Check, ...] = ()
    if golden is not None:
        lacking = sorted(set(file.signatures) - {key for key, items in real.items() if items})
        if number_format.steps and lacking:
            raise ValueError(f"an int8 file is proven on real inputs: give representative for signatures {lacking}")
        with stage("parity", name):
            checks = parity(golden, file, cases(file.signatures, real), number_format)
    value, golden_value = None, None
    if metric is not None:
        with stage("metric", name):
            value, golden_value = _metric(metric, file, golden, max_drop)
    default = default_signature(file.signatures)
    with stage("latency", name):
        inputs = latency_inputs(file.signatures[default], real.get(default, []))
        latency = {threads: _latency(runtime, default, inputs) for threads, runtime in runtimes.items()}
    return ExportReport((Row(name, kind, _size(path), latency, checks, value, golden_value),))


def _open(path: Path, golden: SavedModelRuntime | None) -> tuple[Mapping[int, Runtime], str, Format]:
    """The file in its runtime by number of threads, its name for people, and its number format."""
    if path.is_dir():
        types = decompose.op_types(path)
        python = types & decompose.PYTHON_OPS
        if python:
            raise ExportError("structure", f"{', '.join(sorted(python))} calls Python and works in this process only")
        native = any(">" in op_type for op_type in types)
        threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
        return {threads: open_saved_model(path)}, "SavedModel, native" if native else "SavedModel", _coarsest(path)
    contents = flatbuffer.inspect(path)
    if contents.custom_ops:
        raise ExportError(
            "structure",
            f"ops {', '.join(contents.custom_ops)} are not builtin in TFLite (Select-TF or custom); no Python runtime "
            f"runs them. Rewrite that part of the model with builtin ops",
        )
    # A converter that loses the weights loses all of them; folding and deduplication only ever shrink them somewhat.
    expected = sum(int(np.prod(v.shape)) for v in golden.variables if len(v.shape) >= 2) if golden else 0
    if contents.stored < expected / 10:
        raise ExportError("structure", f"holds {contents.stored} weights, the model has {expected}: they were lost")
    return (
        {threads: LiteRuntime(path, threads) for threads in (1, 2)},
        f"TFLite {contents.format.name}",
        contents.format,
    )


def _coarsest(folder: Path) -> Format:
    """The least exact floating type that a SavedModel computes in."""
    types = {
        value.type
        for meta in decompose.read(folder).meta_graphs
        for node in decompose.nodes(meta.graph_def)
        for value in node.attr.values()
        if value.HasField("type")
    }
    known = {tf.bfloat16: BFLOAT16, tf.float16: FLOAT16, tf.float32: FLOAT32}
    found = [number_format for dtype, number_format in known.items() if dtype.as_datatype_enum in types]
    return found[0] if found else FLOAT64


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


def _metric(
    metric: Metric, file: Runtime, golden: SavedModelRuntime | None, max_drop: float | None
) -> tuple[float, float | None]:
    value = _evaluated(metric, file)
    golden_value = _evaluated(metric, golden) if golden is not None else None
    if max_drop is not None and golden_value is not None and not golden_value - value <= max_drop:
        raise ExportError("metric", f"fell from {golden_value:.6g} to {value:.6g}; max_drop allows {max_drop:g}")
    return value, golden_value


def _evaluated(metric: Metric, runtime: Runtime) -> float:
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
