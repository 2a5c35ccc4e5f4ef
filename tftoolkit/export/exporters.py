"""``saved_model`` and ``tflite``: trace, decompose, convert, prove, and only then write."""

import os
import shutil
from pathlib import Path
from typing import Any, Literal

from tftoolkit.export import decompose, library
from tftoolkit.export.convert import check_calibration, convert
from tftoolkit.export.proof import Metric, check_metric, open_saved_model, prove
from tftoolkit.export.report import ExportError, ExportReport
from tftoolkit.export.samples import Representative, real_inputs
from tftoolkit.export.staging import commit, stage, workspace
from tftoolkit.export.trace import Signatures, is_saved_model_path, saved_model_path, trace


def saved_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    ops: Literal["decompose", "native"] = "decompose",
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a SavedModel that was loaded again and computes the same as the model, or writes nothing.

    Args:
      model: tf.Module, tf_keras or Keras 3 model, or the folder of an existing SavedModel.
      path: the folder to make.
      signatures: from name to a tf.function with an input_signature, a ConcreteFunction, or
        ``(callable, [tf.TensorSpec(shape, dtype, name), ...])``. Functions that return a dict name their outputs;
        others get TensorFlow's ``output_0``, ``output_1``, .... TensorFlow orders inputs and outputs by name. None: the
        model's own (a functional Keras model, a module whose ``__call__`` has an input_signature, a SavedModel).
      ops: "decompose" replaces custom ops by their plain-TensorFlow references, so that the file loads anywhere;
        "native" keeps them and puts their libraries and ``load.py`` into ``assets.extra``.
      representative, metric, max_drop: what else the file is proven on; see ``verify``.
      overwrite: replace what exists at ``path``.

    Raises ExportError when a stage fails, FileExistsError, FileNotFoundError, ValueError for unusable arguments.
    """
    if ops not in ("decompose", "native"):
        raise ValueError(f"ops must be 'decompose' or 'native', got {ops!r}")
    check_metric(metric, max_drop)
    name = Path(path).name
    with workspace(path, overwrite) as folder:
        native = _native(model, signatures, folder, name)
        built = folder / "result"
        if ops == "native":
            shutil.copytree(native, built)
            custom = decompose.custom_ops(decompose.op_types(built), library.find)
            if custom:
                library.pack(built, custom)
        else:
            _decomposed(native, built, name)
        report = prove(built, open_saved_model(native), representative, metric, max_drop, name)
        commit(built, path, overwrite)
    return report


def tflite(
    model: Any,
    path: str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    quantize: Literal["int8"] | None = None,
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a TFLite file of builtin ops that computes in ai-edge-litert what the model computes in TensorFlow.

    Args:
      model, signatures, overwrite: as in ``saved_model``. Free (None) dimensions stay free.
      path: the .tflite file to make.
      quantize: None for float32, or "int8": 8-bit weights and activations, while inputs and outputs stay float32.
      representative: real inputs as dicts of named arrays (iterable, or callable returning one; or a dict from
        signature to either), at most 512 examples are used. "int8" needs 100 or more: they set each activation's range.
      metric, max_drop: see ``verify``.

    Raises ExportError when a stage fails, naming the ops where TFLite lacks some; FileExistsError, ValueError.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {quantize!r}")
    if quantize == "int8" and representative is None:
        raise ValueError(
            "quantize='int8' needs representative: an iterable of dicts of named inputs, from the training pipeline"
        )
    check_metric(metric, max_drop)
    name = Path(path).name
    with workspace(path, overwrite) as folder:
        native = _native(model, signatures, folder, name)
        golden = open_saved_model(native)
        real = real_inputs(representative, golden.signatures)
        if quantize == "int8":
            check_calibration(real, golden.signatures)
        decomposed = _decomposed(native, folder / "decomposed", name)
        built = folder / "result.tflite"
        with stage("convert", name):
            built.write_bytes(convert(decomposed, golden.signatures, real if quantize == "int8" else {}))
        report = prove(built, golden, real or None, metric, max_drop, name)
        commit(built, path, overwrite)
    return report


def _native(model: Any, signatures: Signatures | None, folder: Path, name: str) -> Path:
    """The model as a SavedModel in which custom ops are still themselves."""
    if is_saved_model_path(model):
        return saved_model_path(model, signatures)
    with stage("trace", name):
        return trace(model, signatures, folder / "native")


def _decomposed(native: Path, folder: Path, name: str) -> Path:
    """A copy without custom ops."""
    with stage("decompose", name):
        shutil.copytree(native, folder)
        shutil.rmtree(folder / "assets.extra", ignore_errors=True)  # the libraries of a native export
        decompose.decompose(folder, library.find)
        left = sorted(op_type for op_type in decompose.op_types(folder) if ">" in op_type or library.find(op_type))
        if left:
            raise ExportError("decompose", f"custom ops {', '.join(left)} are still there")
    return folder
