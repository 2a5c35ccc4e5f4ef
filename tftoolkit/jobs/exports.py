"""The files that a job leaves in ``export/``."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tftoolkit import export
from tftoolkit.jobs import settings

_Exporter = Callable[..., export.ExportReport]
# A recipe of ai-edge-quantizer.
INT4_WEIGHTS = [
    {
        "regex": ".*",
        "operation": "*",
        "algorithm_key": "min_max_uniform_quantize",
        "op_config": {
            "weight_tensor_config": {"num_bits": 4, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"},
            "compute_precision": "INTEGER",
            "explicit_dequantize": False,
        },
    }
]
# What recipes name → the file, and how it is made. TFLite's int8 needs examples for calibration.
TARGETS: dict[str, tuple[str, _Exporter, dict[str, Any]]] = {
    "saved_model": ("saved_model", export.saved_model, {}),
    "saved_model_native": ("saved_model_native", export.saved_model, {"ops": "native"}),
    "tflite": ("model.tflite", export.tflite, {}),
    "tflite_float16": ("model_float16.tflite", export.tflite, {"quantize": "float16"}),
    "tflite_dynamic": ("model_dynamic.tflite", export.tflite, {"quantize": "dynamic"}),
    # Weights of 4 bits, a scale for each channel; what is computed with them is 8 bits.
    "tflite_int4": ("model_int4.tflite", export.tflite, {"quantize": INT4_WEIGHTS}),
    "tflite_int8": ("model_int8.tflite", export.tflite, {"quantize": "int8"}),
    "onnx": ("model.onnx", export.onnx, {}),
}
# Extra of pyproject.toml → what it installs that files of this kind cannot be made without.
_NEEDED = {"onnx": ("tf2onnx", "onnx", "onnxruntime"), "export": ("ai_edge_litert",)}


def check(targets: Sequence[str]) -> None:
    """Raises ValueError for an unknown target."""
    for target in targets:
        settings.one_of("exports", target, TARGETS)


def left_out(folder: Path, targets: Sequence[str]) -> list[str]:
    """The targets without a file in ``folder``, of which all that they need is installed: by now."""
    return [one for one in targets if not (folder / TARGETS[one][0]).exists() and not _not_installed(one)]


def _extra(target: str) -> str:
    return "export" if target.startswith("tflite") else target


def _not_installed(target: str) -> list[str]:
    return [name for name in _NEEDED.get(_extra(target), ()) if importlib.util.find_spec(name) is None]


def export_all(model: Any, folder: Path, targets: Sequence[str], **arguments: Any) -> export.ExportReport:
    """Exports the model to each target, with the same signatures, examples, metric and max_drop.

    What a target needs and isn't installed is said, and that target left out.

    Raises ValueError for an unknown target, and what the exporters raise.
    """
    check(targets)
    proof = export.ExportReport(())
    for target in targets:
        if missing := _not_installed(target):
            print(
                f"No {target} file, since {', '.join(missing)} is not installed: "
                f"pip install 'tftoolkit[{_extra(target)}]'"
            )
            continue
        name, exporter, settings = TARGETS[target]
        proof += exporter(model, folder / name, **arguments, **settings)
    return proof
