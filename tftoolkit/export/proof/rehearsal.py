"""Runs in a child process first what might end the process, or never end: files, and models on any integers."""

import contextlib
import os
import resource
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from tftoolkit.export.report import ExportError
from tftoolkit.export.runtimes import worker
from tftoolkit.export.runtimes.made_up import INTEGERS, LIMITS, Ranges, cases
from tftoolkit.export.runtimes.runtime import LiteRuntime, OnnxRuntime, Runtime
from tftoolkit.export.runtimes.samples import Case

SECONDS = 300  # for calls on ordinary inputs
EXTREME_SECONDS = 30  # on large and infinite numbers, NaN, and integers of all sizes
EXTREMES = ("large", "nan")
ROOM = 2 << 30  # bytes that a model may take beyond what it has: an integer may be a size


def rehearse(path: Path, ranges: Ranges) -> frozenset[str]:
    """Opens the file and calls each signature on made-up inputs. Raises ExportError where it cannot, or crashes.

    A loop that waits for a number to become small may never end on infinity or NaN. Whether such a call has to end is
    not known here, so the kinds of inputs on which one doesn't are returned: parity refuses the file if TensorFlow does
    finish, and must not call it itself, as it couldn't stop it.
    """
    try:
        worker.call_within(SECONDS, _run, path.absolute(), ("random", "zeros"), ranges)
    except TimeoutError:
        reason = f"three calls on random inputs do not end within {SECONDS} s: a loop whose condition stays true?"
        raise ExportError("structure", reason) from None
    except ExportError as error:
        raise _in_structure(error) from None
    try:
        worker.call_within(EXTREME_SECONDS, _run, path.absolute(), EXTREMES, ranges)
    except TimeoutError:
        return frozenset(kind for kind in EXTREMES if not _ends(path, kind, ranges))
    except ExportError as error:
        raise _in_structure(error) from None
    return frozenset()


def _ends(path: Path, kind: str, ranges: Ranges) -> bool:
    try:
        worker.call_within(EXTREME_SECONDS, _run, path.absolute(), (kind,), ranges)
    except TimeoutError:
        return False
    except ExportError as error:
        raise _in_structure(error) from None
    return True


def _in_structure(error: ExportError) -> ExportError:
    return ExportError("structure", error.reason, signature=error.signature, tensor=error.tensor)


def taken_by_tensorflow(model: Path, tried: Sequence[Case]) -> list[Case]:
    """Without the calls on integers that TensorFlow refuses, as a wrong index, or an array of two thousand million.

    It refuses most with an error, some by ending its process or by taking all memory there is.
    """
    delicate = [i for i, case in enumerate(tried) if case.kind in (*INTEGERS, LIMITS)]
    if not delicate:
        return list(tried)
    from tftoolkit.export import saved_models
    from tftoolkit.export.convert import decompose, library

    custom = decompose.custom_ops(saved_models.op_types(model), library.find)
    paths = {op_type: op.library.path for op_type, op in custom.items()}

    def taken(positions: Sequence[int]) -> list[int]:
        flags = worker.call_within(
            EXTREME_SECONDS, _in_tensorflow, model.absolute(), paths, [tried[position] for position in positions]
        )
        return [position for position, flag in zip(positions, flags, strict=True) if flag]

    try:
        good = taken(delicate)
    except (ExportError, TimeoutError):  # one of them ended it: which?
        good = []
        for kind in (*INTEGERS, LIMITS):
            with contextlib.suppress(ExportError, TimeoutError):
                good += taken([position for position in delicate if tried[position].kind == kind])
    return [case for position, case in enumerate(tried) if position not in delicate or position in good]


def _in_tensorflow(model: Path, custom: Mapping[str, Path], tried: Sequence[Case]) -> list[bool]:
    """Which calls work; of those on one input's integers alone, only where no call on all of that kind does.

    Where one finds no memory, those of its kind on the same inputs are left out: TensorFlow waits ten seconds for some.
    """
    import tensorflow as tf

    from tftoolkit.export.convert import library
    from tftoolkit.export.runtimes.tf_runtime import SavedModelRuntime

    library.register(custom)
    golden = SavedModelRuntime(model)
    found = []
    together, too_large = set(), set()
    with _room():
        for case in tried:
            works, inputs = False, (case.signature, case.kind, case.only)
            if inputs not in too_large and (case.only is None or inputs[:2] not in together):
                try:
                    golden.run(case.signature, case.inputs, EXTREME_SECONDS / 10)
                    works = True
                except tf.errors.ResourceExhaustedError:
                    too_large.add(inputs)
                except Exception:  # TensorFlow raises many kinds
                    pass
            if works and case.only is None:
                together.add((case.signature, case.kind))
            found.append(works)
    return found


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """The process gets no more memory than ``ROOM`` beyond what it has."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():  # no Linux
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(statistics.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def rehearse_taken(path: Path, tried: Sequence[Case]) -> None:
    """Calls a file on integers of all sizes and on infinities, of those that TensorFlow takes.

    Raises ExportError where that ends its process, or does not end.
    """
    delicate = [case for case in tried if case.kind in (*INTEGERS, LIMITS, "inf")]
    if not delicate or path.is_dir():
        return
    try:
        worker.call_within(EXTREME_SECONDS * len(delicate), _run_all, path.absolute(), delicate)
    except TimeoutError:
        kinds = ", ".join(dict.fromkeys(case.kind for case in delicate))
        reason = f"calls on {kinds} inputs do not end, where TensorFlow's do: a loop's condition differs on them"
        raise ExportError("parity", reason) from None
    except ExportError as error:
        raise _in_structure(error) from None


def _run_all(path: Path, tried: Sequence[Case]) -> None:
    runtime = _opened(path)
    for case in tried:
        with contextlib.suppress(Exception):  # the proof itself says what the matter is
            runtime.run(case.signature, case.inputs)


def _opened(path: Path) -> Runtime:
    return OnnxRuntime(path) if path.suffix == ".onnx" else LiteRuntime(path)


def _run(path: Path, kinds: Container[str], ranges: Ranges) -> None:
    runtime = _opened(path)
    with contextlib.suppress(Exception):  # the proof itself says what the matter is, on inputs that the model takes
        for case in cases(runtime.signatures, {}, ranges=ranges):
            if case.kind in kinds:
                runtime.run(case.signature, case.inputs)
