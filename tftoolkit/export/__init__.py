"""Files that were run in their own runtime and proven equal before they are written.

``saved_model``, ``tflite`` and ``onnx`` export, ``verify`` proves an existing file. All return an ``ExportReport``
(``print`` it; ``bar_chart`` draws it), or raise ``ExportError`` and leave nothing at the destination. Beside each file
lie its golden inputs and outputs, so that ``verify`` repeats the proof where TensorFlow is not installed: everything
loads on first use.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row

if TYPE_CHECKING:
    from tftoolkit.export.exporters import onnx, saved_model, tflite
    from tftoolkit.export.on_device import trainable_tflite
    from tftoolkit.export.proof.chart import bar_chart
    from tftoolkit.export.proof.proof import verify
    from tftoolkit.export.proof.quantization_error import propose_keep_float, quantization_errors
    from tftoolkit.export.runtimes.delegate import load as load_delegate
    from tftoolkit.export.web.browser_page import web
    from tftoolkit.export.web.writing import Sample

__all__ = [
    "Check", "ExportError", "ExportReport", "Latency", "Row", "Sample", "bar_chart", "load_delegate", "onnx",
    "propose_keep_float", "quantization_errors", "saved_model", "tflite", "trainable_tflite", "verify", "web",
]  # fmt: skip

_WHERE = {
    "Sample": "web.writing",
    "bar_chart": "proof.chart",
    "onnx": "exporters",
    "propose_keep_float": "proof.quantization_error",
    "quantization_errors": "proof.quantization_error",
    "saved_model": "exporters",
    "tflite": "exporters",
    "trainable_tflite": "on_device",
    "verify": "proof.proof",
    "web": "web.browser_page",
}


def __getattr__(name: str) -> Any:
    if name == "load_delegate":
        from tftoolkit.export.runtimes import delegate

        return delegate.load
    if name in _WHERE:
        return getattr(importlib.import_module(f"tftoolkit.export.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'tftoolkit.export' has no attribute {name!r}; it has {', '.join(__all__)}")


class _Package(ModuleType):
    """``web`` is a function, and the folder it comes from: importing that would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name == "web" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
