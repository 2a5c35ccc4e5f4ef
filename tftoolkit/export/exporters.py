"""``saved_model``, ``tflite`` and ``onnx``: trace, decompose, convert, prove, and only then write."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tftoolkit.export import saved_models
from tftoolkit.export.convert import decompose, freeze, library, lite_repairs, selective, tf2onnx_bridge
from tftoolkit.export.convert.convert import CALIBRATED, MODES, check_calibration, convert
from tftoolkit.export.convert.trace import Signatures, is_saved_model_path, saved_model_path, separate, trace
from tftoolkit.export.proof import golden
from tftoolkit.export.proof.opened import open_saved_model
from tftoolkit.export.proof.proof import Metric, Proof, check_metric, prove
from tftoolkit.export.report import ExportError, ExportReport
from tftoolkit.export.runtimes import delegate, worker
from tftoolkit.export.runtimes.made_up import Ranges
from tftoolkit.export.runtimes.runtime import require_litert
from tftoolkit.export.runtimes.samples import Representative, real_inputs
from tftoolkit.export.staging import commit, stage, workspace


def saved_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    aliases: Mapping[str, str] | None = None,
    ops: Literal["decompose", "native"] = "decompose",
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    input_ranges: Ranges | None = None,
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
      aliases: from a name to the signature whose function has it as TensorFlow's function alias, for tools that look
        functions up by those (``tf.saved_model.SaveOptions(function_aliases=...)``). A SavedModel keeps its own.
      ops: "decompose" replaces custom ops by their plain-TensorFlow references, so that the file loads anywhere;
        "native" keeps them and puts their libraries and ``load.py`` into ``assets.extra``.
      representative, metric, max_drop, input_ranges: what else the file is proven on; see ``verify``.
      overwrite: replace what exists at ``path``.

    Raises ExportError when a stage fails, FileExistsError, FileNotFoundError, ValueError for unusable arguments.
    """
    _check_ops(ops)
    check_metric(metric, max_drop)
    name = Path(path).name
    with workspace(path, overwrite) as folder:
        native = _native(model, signatures, folder, name, aliases)
        built = folder / "result"
        if ops == "native":
            shutil.copytree(native, built)
            custom = decompose.custom_ops(saved_models.op_types(built), library.find)
            if custom:
                library.pack(built, custom)
        else:
            decompose.decomposed_copy(native, built, name)
        proof = prove(built, open_saved_model(native), representative, metric, max_drop, input_ranges, name)
        write_proven(built, folder, path, proof, overwrite)
    return proof.report


def tflite(
    model: Any,
    path: str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    quantize: Literal["float16", "dynamic", "int8", "int16x8"] | Sequence[Mapping[str, Any]] | None = None,
    keep_float: Sequence[str] = (),
    integer_io: bool = False,
    ops: Literal["decompose", "native"] = "decompose",
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    input_ranges: Ranges | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes a TFLite file that computes in ai-edge-litert what the model computes in TensorFlow.

    Args:
      model, signatures, overwrite: as in ``saved_model``. Free (None) dimensions stay free.
      path: the .tflite file to make.
      quantize: None for float32; "float16": weights are stored in half precision and computed with in float32;
        "dynamic": weights are int8, activations become int8 in every call; "int8": 8-bit weights and activations;
        "int16x8": 8-bit weights, 16-bit activations. Or a recipe of ai-edge-quantizer (a list of dicts).
      keep_float: regular expressions; ops one of whose outputs or weights has such a name stay in float32. For
        "dynamic", "int8", "int16x8" and recipes. A pattern that finds nothing is refused with the names there are.
      integer_io: inputs and outputs are integers too ("int8" and "int16x8"); their scales stand in the report.
      ops: "decompose" makes a file of builtin ops only. "native" keeps custom ops, and an external delegate that runs
        their CPU kernels lies in ``NAME.tflite.delegate``: the file runs where ``load_delegate`` has loaded it. Shapes
        must be fixed, and ``quantize`` None, "float16" or "dynamic".
      representative: real inputs as dicts of named arrays (iterable, or callable returning one; or a dict from
        signature to either), at most 512 examples are used. "int8" and "int16x8" need 100 or more: they set each
        activation's range.
      metric, max_drop, input_ranges: see ``verify``.

    Raises ExportError when a stage fails, naming the ops where TFLite lacks some; FileExistsError, ValueError;
    ImportError without ai-edge-litert.
    """
    require_litert()
    _check_mode(quantize, keep_float, integer_io, representative)
    _check_ops(ops, quantize, keep_float)
    check_metric(metric, max_drop)
    name = Path(path).name
    with workspace(path, overwrite) as folder:
        native = freeze.frozen(_native(model, signatures, folder, name), folder / "frozen")
        original = open_saved_model(native)
        _check_fake_quantization(native, "int8" if quantize == "int8" and not keep_float else None)
        custom = decompose.custom_ops(saved_models.op_types(native), library.find) if ops == "native" else {}
        library.check_names(custom)
        real = real_inputs(representative, original.signatures)
        if isinstance(quantize, str) and quantize in CALIBRATED:
            check_calibration(quantize, real, original.signatures)
        if custom:
            source = Path(shutil.copytree(native, folder / "copied"))
        else:
            source = decompose.decomposed_copy(native, folder / "decomposed", name)
        saved_models.substitute(source, lite_repairs.substitute)
        if is_saved_model_path(model):
            source = separate(source, folder / "separate")
        built = folder / "result.tflite"
        with stage("convert", name):
            if quantize is not None and (keep_float or not isinstance(quantize, str)):
                content = convert(source, original.signatures)
                content = worker.call(selective.quantize, content, quantize, keep_float, real, integer_io)
            else:
                paths = {op_type: op.library.path for op_type, op in custom.items()}
                content = convert(source, original.signatures, quantize, real, integer_io, paths)
            if custom:
                content = delegate.prepare(content, custom)
                delegate.pack(delegate.folder_of(built), custom)
            built.write_bytes(content)
            _check_quantised(built, quantize)
        proof = prove(built, original, real or None, metric, max_drop, input_ranges, name)
        write_proven(built, folder, path, proof, overwrite)
    return proof.report


def onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    signatures: Signatures | None = None,
    signature: str | None = None,
    representative: Representative | None = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    input_ranges: Ranges | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Writes an ONNX file that computes in onnxruntime what the model computes in TensorFlow.

    Args:
      model, signatures, overwrite: as in ``saved_model``. Free (None) dimensions stay free.
      path: the file to make; its name ends with .onnx.
      signature: which of several signatures; ONNX holds one function.
      representative, metric, max_drop, input_ranges: what else the file is proven on; see ``verify``.

    Raises ExportError when a stage fails, naming the ops that ONNX lacks; FileExistsError, ValueError.
    """
    name = Path(path).name
    if not name.endswith(".onnx"):
        raise ValueError(f"path must end with .onnx, got {name!r}")
    check_metric(metric, max_drop)
    with workspace(path, overwrite) as folder:
        native = freeze.frozen(_native(model, signatures, folder, name), folder / "frozen")
        _check_fake_quantization(native, None)
        original = open_saved_model(native).only(signature)
        chosen, described = next(iter(original.signatures.items()))
        decomposed = decompose.decomposed_copy(native, folder / "decomposed", name)
        built = folder / "result.onnx"
        with stage("convert", name):
            built.write_bytes(worker.call(tf2onnx_bridge.convert, decomposed.absolute(), chosen, described))
        proof = prove(built, original, representative, metric, max_drop, input_ranges, name)
        write_proven(built, folder, path, proof, overwrite)
    return proof.report


def _check_ops(ops: str, quantize: Any = None, keep_float: Sequence[str] = ()) -> None:
    if ops not in ("decompose", "native"):
        raise ValueError(f"ops must be 'decompose' or 'native', got {ops!r}")
    if ops == "native" and (keep_float or quantize not in (None, "float16", "dynamic")):
        raise ValueError(
            f"ops='native' goes with quantize=None, 'float16' or 'dynamic' (custom ops have no integer kernels), got "
            f"{quantize!r}{' and keep_float' if keep_float else ''}; leave ops out"
        )


def _check_fake_quantization(native: Path, mode: str | None) -> None:
    if mode != "int8" and any(op_type.startswith("FakeQuant") for op_type in saved_models.op_types(native)):
        raise ExportError(
            "convert",
            "the model rounds as an int8 file does (FakeQuantization): export it with tflite(…, quantize='int8'), "
            "without keep_float, or export the model inside of it",
        )


def _check_mode(
    quantize: Any, keep_float: Sequence[str], integer_io: bool, representative: Representative | None
) -> None:
    recipe = isinstance(quantize, list | tuple) and all(isinstance(rule, Mapping) for rule in quantize) and quantize
    if quantize is not None and not recipe and not (isinstance(quantize, str) and quantize in MODES):
        raise ValueError(
            f"quantize must be None, one of {', '.join(map(repr, MODES))}, or a recipe of ai-edge-quantizer (a list of "
            f"dicts), got {quantize!r}"
        )
    if isinstance(keep_float, str):
        raise ValueError(f"keep_float must be a list of patterns, got {keep_float!r}; write [{keep_float!r}]")
    if keep_float and not recipe and quantize not in selective.RECIPES:
        raise ValueError(f"keep_float needs quantize to be one of {', '.join(selective.RECIPES)}, or a recipe")
    if integer_io and not recipe and quantize not in CALIBRATED:
        raise ValueError(f"integer_io needs quantize='int8' or 'int16x8', got {quantize!r}")
    if isinstance(quantize, str) and quantize in CALIBRATED and representative is None:
        raise ValueError(
            f"quantize={quantize!r} needs representative: an iterable of dicts of named inputs, from the training "
            f"pipeline"
        )


def _check_quantised(built: Path, quantize: Any) -> None:
    """Raises ExportError where the converter wrote another format than was asked for."""
    from tftoolkit.export.convert import flatbuffer  # needs ai-edge-litert, which a SavedModel does not

    found = flatbuffer.inspect(built).format
    if quantize in CALIBRATED and found.name == "dynamic":
        return  # it only moves weights, and computes nothing
    if isinstance(quantize, str) and found.name != quantize:
        raise ExportError(
            "convert",
            f"asked for {quantize}, the converter wrote {found.name}. It quantises weights of 1024 elements or more "
            f"only (float16: floating constants); nothing would be gained over {found.name}",
        )


def write_proven(built: Path, folder: Path, path: str | os.PathLike[str], proof: Proof, overwrite: bool) -> None:
    with stage("golden", Path(path).name):
        made = golden.save(built, folder, proof.cases, proof.signatures, proof.row)
        beside = dict(zip(made, golden.beside(Path(path)), strict=True))
        from_delegate, to_delegate = delegate.folder_of(built), delegate.folder_of(Path(path))
        if from_delegate.is_dir():
            beside[from_delegate] = to_delegate
        commit(built, path, overwrite, beside)
        if from_delegate not in beside and to_delegate.is_dir():
            shutil.rmtree(to_delegate)  # that of the file which stood there before


def _native(
    model: Any, signatures: Signatures | None, folder: Path, name: str, aliases: Mapping[str, str] | None = None
) -> Path:
    """The model as a SavedModel in which custom ops are still themselves."""
    if is_saved_model_path(model):
        return saved_model_path(model, signatures, aliases)
    with stage("trace", name):
        return trace(model, signatures, folder / "native", aliases)
