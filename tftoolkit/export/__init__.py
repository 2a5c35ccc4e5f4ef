"""SavedModel and TFLite files that were run in their own runtime and proven equal before they are written.

``saved_model`` and ``tflite`` export, ``verify`` proves an existing file. All return an ``ExportReport`` (``print``
it), or raise ``ExportError`` and leave nothing at the destination.
"""

from tftoolkit.export.exporters import saved_model, tflite
from tftoolkit.export.proof import verify
from tftoolkit.export.report import Check, ExportError, ExportReport, Latency, Row

__all__ = ["Check", "ExportError", "ExportReport", "Latency", "Row", "saved_model", "tflite", "verify"]
