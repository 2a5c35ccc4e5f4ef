"""Runs a file in a child process first: some files end the process that opens or runs them."""

import contextlib
from collections.abc import Container
from pathlib import Path

from tftoolkit.export import worker
from tftoolkit.export.report import ExportError
from tftoolkit.export.runtime import LiteRuntime, OnnxRuntime
from tftoolkit.export.samples import cases

SECONDS = 300  # for calls on ordinary inputs
EXTREME_SECONDS = 30  # on large numbers and NaN


def rehearse(path: Path) -> None:
    """Opens the file and calls each signature on made-up inputs. Raises ExportError where it cannot, or crashes.

    A loop that waits for a number to become small may never end on infinity. Whether a call on large numbers or NaN has
    to end is not known here: parity leaves out those that TensorFlow doesn't finish either.
    """
    try:
        worker.call_within(SECONDS, _run, path.absolute(), ("random", "zeros"))
    except TimeoutError:
        reason = f"three calls on random inputs do not end within {SECONDS} s: a loop whose condition stays true?"
        raise ExportError("structure", reason) from None
    except ExportError as error:
        raise _in_structure(error) from None
    try:
        worker.call_within(EXTREME_SECONDS, _run, path.absolute(), ("large", "nan"))
    except TimeoutError:
        pass
    except ExportError as error:
        raise _in_structure(error) from None


def _in_structure(error: ExportError) -> ExportError:
    return ExportError("structure", error.reason, signature=error.signature, tensor=error.tensor)


def _run(path: Path, kinds: Container[str]) -> None:
    runtime = OnnxRuntime(path) if path.suffix == ".onnx" else LiteRuntime(path)
    with contextlib.suppress(Exception):  # the proof itself says what the matter is, on inputs that the model takes
        for case in cases(runtime.signatures, {}):
            if case.kind in kinds:
                runtime.run(case.signature, case.inputs)
