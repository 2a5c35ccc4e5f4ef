"""From a decomposed SavedModel to a TFLite flatbuffer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from tftoolkit.export import saved_models
from tftoolkit.export.convert import library
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import worker
from tftoolkit.export.runtimes.runtime import Arrays, Signature
from tftoolkit.export.runtimes.samples import examples_in

MODES = ("float16", "dynamic", "int8", "int16x8")
CALIBRATED = ("int8", "int16x8")
# TensorFlow's guide on post-training integer quantisation asks for "around 100-500 samples".
MIN_CALIBRATION_EXAMPLES = 100
FIXED = "a recurrent layer or a loop: give fixed shapes, tf.TensorSpec([1, ...]), or unroll it"
Calibration = Mapping[str, list[Arrays]]


def check_calibration(mode: str, real: Calibration, signatures: Mapping[str, Signature]) -> None:
    """Raises ValueError where a signature has too few real examples to calibrate, ExportError for string inputs."""
    for name, signature in signatures.items():
        texts = [tensor.name for tensor in signature.inputs if tensor.dtype == object]
        if texts:
            reason = (
                f"{mode} calibrates on real inputs, and TensorFlow's calibrator cannot be given strings ({texts[0]}): "
                f"take quantize='dynamic' or 'float16', or export the part behind the look-up"
            )
            raise ExportError("convert", reason, signature=name, tensor=texts[0])
        count = sum(examples_in(arrays) for arrays in real.get(name, []))
        if count < MIN_CALIBRATION_EXAMPLES:
            raise ValueError(
                f"quantize={mode!r} calibrates on real inputs: representative has {count} examples for signature "
                f"{name!r}, at least {MIN_CALIBRATION_EXAMPLES} are needed"
            )


def convert(
    saved_model: Path,
    signatures: Mapping[str, Signature],
    mode: str | None = None,
    calibration: Calibration | None = None,
    integer_io: bool = False,
    custom: Mapping[str, Path] | None = None,
) -> bytes:
    """All signatures of the SavedModel as TFLite, quantised as ``mode`` says; made in a child process.

    ``custom``: the custom ops that stay in it (op type -> library). Raises ExportError naming the ops that TFLite does
    not have, or the signal that ended the child.
    """
    try:
        # The child may live in another folder than this process does by now.
        return worker.call(
            _convert, saved_model.absolute(), signatures, mode, calibration or {}, integer_io, custom or {}
        )
    except ExportError as error:
        loops = {"While", "StatelessWhile"} & saved_models.op_types(saved_model)
        if mode in CALIBRATED and loops and "SIGSEGV" in error.reason:
            reason = f"{error.reason}. Known: {mode} of a loop (a recurrent layer without unroll=True)"
            raise ExportError(error.stage, reason) from None
        raise


def _convert(
    saved_model: Path,
    signatures: Mapping[str, Signature],
    mode: str | None,
    calibration: Calibration,
    integer_io: bool,
    custom: Mapping[str, Path],
) -> bytes:
    library.register(custom)
    try:
        converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=sorted(signatures))
        # Without it the converter loses the activation after a product with a non-constant matrix (TF 2.21).
        converter.unfold_batchmatmul = True
        converter.allow_custom_ops = bool(custom)
        _set_mode(converter, mode, calibration, integer_io)
        return converter.convert()
    except Exception as error:  # the converter raises many kinds, bare Exception among them
        # Its text is a dump of the whole program, hundreds of lines long: only what matters goes on.
        raise ExportError("convert", _reason(str(error))) from None


def _set_mode(converter: tf.lite.TFLiteConverter, mode: str | None, calibration: Calibration, integer_io: bool) -> None:
    sets = tf.lite.OpsSet
    if mode is None:
        return
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode not in CALIBRATED:
        return
    converter.representative_dataset = lambda: _yielded(calibration)
    # Integer kernels only. The converter may still leave an op in float between two of them; the report counts those.
    builtins = sets.TFLITE_BUILTINS_INT8
    if mode == "int16x8":
        builtins = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    converter.target_spec.supported_ops = [builtins]
    if integer_io:
        converter.inference_input_type = converter.inference_output_type = tf.int8 if mode == "int8" else tf.int16


def _yielded(calibration: Calibration) -> Iterator[tuple[str, Arrays]]:
    for name, items in calibration.items():
        for arrays in items:
            yield name, arrays


def _reason(message: str) -> str:
    """The few lines that matter of the converter's many, and the likely cause."""
    if "element_shape to be" in message:
        return f"TFLite has no builtin op for a list of tensors of unknown shape; {FIXED}"
    missing = re.findall(r"^(?:TF Select|Custom|Flex) ops: (.*)$", message, re.MULTILINE)
    if missing:
        names = sorted({name.strip() for names in missing for name in names.split(",")})
        operands = dict(re.findall(r"^\s*tf\.(\w+)\((.*?)\) ->", message, re.MULTILINE))
        found = [f"{name}({_types(operands[name])})" if operands.get(name) else name for name in names]
        return f"TFLite has no builtin op for {', '.join(found)}; {_advice(names, ' '.join(operands.values()))}"
    errors = re.findall(r"error: (.*)$", message, re.MULTILINE)
    lines = errors or [line for line in message.splitlines() if line.strip()]
    line = re.sub(r"^loc\(.*\): (?=')", "", lines[0].strip()) if lines else "no reason given"
    return f"TensorFlow's converter: {line}"


def _advice(names: Sequence[str], types: str) -> str:
    """What to do about ops that TFLite lacks, or lacks for such operands."""
    if any(name.startswith("TensorList") for name in names):
        return FIXED
    if "f16" in types:
        policy = "mixed_bfloat16" if "bf16" in types else "mixed_float16"
        return (
            f"compute in float32; of a {policy} model make one with the policy float32, and give it the weights of "
            "this one (set_weights)"
        )
    if "complex" in types:
        return "TFLite has hardly any op for complex numbers: make real ones of them (tf.abs, tf.math.real) at once"
    if re.search(r"u?i(8|16|64)>|f64>", types):
        return "compute in float32 or int32 (tf.cast) there, or rewrite that part of the model with other ops"
    return "rewrite that part of the model with other ops"


_MLIR = {
    "i1": "bool",
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "complex<f32>": "complex64",
    "complex<f64>": "complex128",
}


def _types(operands: str) -> str:
    """tensor<1x8x8x3xui8> is uint8[1, 8, 8, 3]."""
    found = []
    for shape, element in re.findall(r"tensor<((?:[\d?*]+x)*)([^<>]*(?:<[^<>]*>)?)>", operands):
        name = _MLIR.get(element) or element.removeprefix("!tf_type.").replace("complex<f32>", "complex64").replace(
            "complex<f64>", "complex128"
        )
        name = re.sub(r"^ui(?=\d)", "uint", name)
        name = re.sub(r"^i(?=\d)", "int", name)
        found.append(f"{name}[{', '.join('None' if n == '?' else n for n in shape.split('x')[:-1])}]")
    return ", ".join(found)
