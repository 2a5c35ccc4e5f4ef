"""Runs a file in a child process first: some files end the process that opens or runs them."""

import contextlib
from collections.abc import Container
from pathlib import Path

from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import worker
from tftoolkit.export.runtimes.runtime import LiteRuntime, OnnxRuntime
from tftoolkit.export.runtimes.samples import cases

SECONDS = 300  # for calls on ordinary inputs
EXTREME_SECONDS = 30  # on large numbers and NaN
EXTREMES = ("large", "nan")


def rehearse(path: Path) -> frozenset[str]:
    """Opens the file and calls each signature on made-up inputs. Raises ExportError where it cannot, or crashes.

    A loop that waits for a number to become small may never end on infinity or NaN. Whether such a call has to end is
    not known here, so the kinds of inputs on which one doesn't are returned: parity refuses the file if TensorFlow does
    finish, and must not call it itself, as it couldn't stop it.
    """
    try:
        worker.call_within(SECONDS, _run, path.absolute(), ("random", "zeros"))
    except TimeoutError:
        reason = f"three calls on random inputs do not end within {SECONDS} s: a loop whose condition stays true?"
        raise ExportError("structure", reason) from None
    except ExportError as error:
        raise _in_structure(error) from None
    try:
        worker.call_within(EXTREME_SECONDS, _run, path.absolute(), EXTREMES)
    except TimeoutError:
        return frozenset(kind for kind in EXTREMES if not _ends(path, kind))
    except ExportError as error:
        raise _in_structure(error) from None
    return frozenset()


def _ends(path: Path, kind: str) -> bool:
    try:
        worker.call_within(EXTREME_SECONDS, _run, path.absolute(), (kind,))
    except TimeoutError:
        return False
    except ExportError as error:
        raise _in_structure(error) from None
    return True


def _in_structure(error: ExportError) -> ExportError:
    return ExportError("structure", error.reason, signature=error.signature, tensor=error.tensor)


def _run(path: Path, kinds: Container[str]) -> None:
    runtime = OnnxRuntime(path) if path.suffix == ".onnx" else LiteRuntime(path)
    with contextlib.suppress(Exception):  # the proof itself says what the matter is, on inputs that the model takes
        for case in cases(runtime.signatures, {}):
            if case.kind in kinds:
                runtime.run(case.signature, case.inputs)
