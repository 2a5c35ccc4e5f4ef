"""Files that were run in their own runtime and proven equal before they are written.

``saved_model``, ``tflite`` and ``onnx`` export, ``verify`` proves an existing file. All return an ``ExportReport``
(``print`` it; ``bar_chart`` draws it), or raise ``ExportError`` and leave nothing at the destination. Beside each file
lie its golden inputs and outputs, so that ``verify`` repeats the proof where TensorFlow is not installed: everything
loads on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row

if TYPE_CHECKING:
    from tftoolkit.export.chart import bar_chart
    from tftoolkit.export.exporters import onnx, saved_model, tflite
    from tftoolkit.export.on_device import trainable_tflite
    from tftoolkit.export.proof import verify

__all__ = [
    "Check", "ExportError", "ExportReport", "Latency", "Row", "bar_chart", "onnx", "saved_model", "tflite",
    "trainable_tflite", "verify",
]  # fmt: skip

_WHERE = {
    "bar_chart": "chart",
    "onnx": "exporters",
    "saved_model": "exporters",
    "tflite": "exporters",
    "trainable_tflite": "on_device",
    "verify": "proof",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"tftoolkit.export.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'tftoolkit.export' has no attribute {name!r}; it has {', '.join(__all__)}")
