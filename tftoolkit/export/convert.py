"""From a decomposed SavedModel to a TFLite flatbuffer."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from tftoolkit.export.report import ExportError
from tftoolkit.export.runtime import Arrays, Signature
from tftoolkit.export.samples import examples_in
from tftoolkit.export.staging import quiet

# TensorFlow's guide on post-training integer quantisation asks for "around 100-500 samples".
MIN_CALIBRATION_EXAMPLES = 100


def check_calibration(real: Mapping[str, list[Arrays]], signatures: Mapping[str, Signature]) -> None:
    """Raises ValueError where a signature has too few real examples to calibrate int8."""
    for name in signatures:
        count = sum(examples_in(arrays) for arrays in real.get(name, []))
        if count < MIN_CALIBRATION_EXAMPLES:
            raise ValueError(
                f"quantize='int8' calibrates on real inputs: representative has {count} examples for signature "
                f"{name!r}, at least {MIN_CALIBRATION_EXAMPLES} are needed"
            )


def convert(saved_model: Path, signatures: Mapping[str, Signature], calibration: Mapping[str, list[Arrays]]) -> bytes:
    """All signatures of the SavedModel as TFLite; int8 with float32 inputs and outputs where there is calibration data.

    Raises ExportError naming the ops that TFLite does not have.
    """
    try:
        with quiet():
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=sorted(signatures))
            # Without it the converter loses the activation after a product with a non-constant matrix (TF 2.21).
            converter.unfold_batchmatmul = True
            if calibration:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.representative_dataset = lambda: _calibration(calibration)
            return converter.convert()
    except Exception as error:  # the converter raises many kinds, bare Exception among them
        # Its text is a dump of the whole program, hundreds of lines long: only what matters goes on.
        raise ExportError("convert", _reason(str(error))) from None


def _calibration(calibration: Mapping[str, list[Arrays]]) -> Iterator[tuple[str, Arrays]]:
    for name, items in calibration.items():
        for arrays in items:
            yield name, arrays


def _reason(message: str) -> str:
    """The few lines that matter of the converter's many."""
    missing = re.findall(r"^(?:TF Select|Custom|Flex) ops: (.*)$", message, re.MULTILINE)
    if missing:
        names = sorted({name.strip() for names in missing for name in names.split(",")})
        return f"TFLite has no builtin op for {', '.join(names)}; rewrite that part of the model with other ops"
    errors = re.findall(r"error: (.*)$", message, re.MULTILINE)
    lines = errors or [line for line in message.splitlines() if line.strip()]
    return f"TensorFlow's converter: {lines[0].strip() if lines else 'no reason given'}"
