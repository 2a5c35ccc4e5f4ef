"""Runs a file in a child process first: some files end the process that opens or runs them."""

import contextlib
from pathlib import Path

from tftoolkit.export import worker
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtime import LiteRuntime, OnnxRuntime
from tftoolkit.export.samples import cases


def rehearse(path: Path) -> None:
    """Opens the file and calls each signature on made-up inputs. Raises ExportError where it cannot, or crashes."""
    try:
        worker.call(_run, path.absolute())
    except ExportError as error:
        raise ExportError("structure", error.reason, signature=error.signature, tensor=error.tensor) from None


def _run(path: Path) -> None:
    runtime = OnnxRuntime(path) if path.suffix == ".onnx" else LiteRuntime(path)
    with contextlib.suppress(Exception):  # the proof itself says what the matter is, on inputs that the model takes
        for case in cases(runtime.signatures, {}):
            runtime.run(case.signature, case.inputs)
