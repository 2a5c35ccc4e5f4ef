"""Opening a file in its own runtimes, after a look at its structure and a rehearsal."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tftoolkit.export.convert.formats import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, Format
from tftoolkit.export.proof.rehearsal import rehearse
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import delegate
from tftoolkit.export.runtimes.made_up import Ranges
from tftoolkit.export.runtimes.runtime import Runtime, open_lite, require_litert

if TYPE_CHECKING:
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime


def open_saved_model(folder: Path) -> SavedModelRuntime:
    """Loads a SavedModel after the custom ops in it are registered."""
    from tftoolkit.export import saved_models
    from tftoolkit.export.convert import decompose, library
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

    if not (folder / "saved_model.pb").is_file():
        raise FileNotFoundError(f"{folder} is not a SavedModel: it has no saved_model.pb")
    decompose.custom_ops(saved_models.op_types(folder), library.find)
    return SavedModelRuntime(folder)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file in its runtime by number of threads, what it is for people, its number format, and on which kinds of
    inputs calls don't end."""

    runtimes: Mapping[int, Runtime]
    kind: str
    format: Format
    endless: frozenset[str] = frozenset()

    @property
    def file(self) -> Runtime:
        return next(iter(self.runtimes.values()))


def open_file(path: Path, golden: SavedModelRuntime | None, ranges: Ranges) -> Opened:
    if path.is_dir():
        return _open_saved_model(path)
    if path.suffix == ".onnx":
        endless = rehearse(path, ranges)
        runtimes = {threads: open_lite(path, threads) for threads in (1, 2)}
        # An .onnx file of ours computes in the types of its model.
        return Opened(runtimes, "ONNX", coarsest(golden.path) if golden else FLOAT32, endless)
    require_litert()
    from tftoolkit.export.convert import flatbuffer

    contents = flatbuffer.inspect(path)
    if contents.custom_ops and not delegate.folder_of(path).is_dir():
        raise ExportError(
            "structure",
            f"ops {', '.join(contents.custom_ops)} are not builtin in TFLite (Select-TF or custom); no Python runtime "
            f"runs them. Rewrite that part of the model with builtin ops",
        )
    if contents.keeps_state:
        raise ExportError(
            "structure",
            "a fused recurrent op keeps its state from call to call, so the second call is wrong; make the layer with "
            "unroll=True, or as a loop (a Keras 3 layer with fixed shapes)",
        )
    # A converter that loses the weights loses all of them; folding and deduplication only ever shrink them somewhat.
    expected = sum(int(np.prod(v.shape)) for v in golden.variables if len(v.shape) >= 2) if golden else 0
    if contents.stored < expected / 10:
        raise ExportError("structure", f"holds {contents.stored} weights, the model has {expected}: they were lost")
    try:
        endless = rehearse(path, ranges)
    except ExportError as error:
        if contents.format.calibrated and "SIGABRT" in error.reason:
            reason = f"{error.reason}. Known: int8 of a ReLU that is zero for all representative inputs"
            raise ExportError(error.stage, reason) from None
        raise
    runtimes = {threads: open_lite(path, threads) for threads in (1, 2)}
    kind = f"TFLite {contents.format.name}"
    if contents.format.calibrated and contents.float_ops:
        kind += f", {contents.float_ops} op{'s' * (contents.float_ops > 1)} in float"
    first = next(iter(runtimes[1].signatures.values()))
    integers = sorted({tensor.stored.split()[0] for tensor in (*first.inputs, *first.outputs) if tensor.stored})
    return Opened(runtimes, kind + f", {integers[0]} I/O" if integers else kind, contents.format, endless)


def _open_saved_model(path: Path) -> Opened:
    import tensorflow as tf

    from tftoolkit.export import saved_models

    types = saved_models.op_types(path)
    python = types & saved_models.PYTHON_OPS
    if python:
        raise ExportError("structure", f"{', '.join(sorted(python))} calls Python and works in this process only")
    native = any(">" in op_type for op_type in types)
    threads = tf.config.threading.get_intra_op_parallelism_threads() or len(os.sched_getaffinity(0))
    kind = "SavedModel, native" if native else "SavedModel"
    return Opened({threads: open_saved_model(path)}, kind, coarsest(path))


def coarsest(folder: Path) -> Format:
    """The least exact floating type that a SavedModel computes in."""
    import tensorflow as tf

    from tftoolkit.export import saved_models

    types = {
        value.type
        for meta in saved_models.read(folder).meta_graphs
        for node in saved_models.nodes(meta.graph_def)
        for value in node.attr.values()
        if value.HasField("type")
    }
    known = {tf.bfloat16: BFLOAT16, tf.float16: FLOAT16, tf.float32: FLOAT32}
    found = [number_format for dtype, number_format in known.items() if dtype.as_datatype_enum in types]
    return found[0] if found else FLOAT64
