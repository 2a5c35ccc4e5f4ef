"""opcheck: does a custom op keep all its promises? One call, one table.

    custom_ops.opcheck(scale, x, alpha=2.0)        # raises OpCheckError with the table if a check fails

In a test file, one test per check::

    from tftoolkit.custom_ops.opcheck import pytest_checks

    test_scale = pytest_checks(scale, x, alpha=2.0)

Kernels first run in a process of their own, so that one that crashes is a line in the table and not the end of the
caller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.opcheck import agreement, child, gradients, memory
from tftoolkit.custom_ops.opcheck.calls import the_call
from tftoolkit.custom_ops.opcheck.report import Failed, OpCheckError, OpReport, Result, Skipped
from tftoolkit.custom_ops.opcheck.subject import Subject

__all__ = ["CHECKS", "KERNEL_CHECKS", "OpCheckError", "OpReport", "Result", "opcheck", "pytest_checks"]

_CHECKS: dict[str, Callable[[Subject], str]] = {
    check.__name__: check
    for check in (
        memory.runs, memory.empty, memory.invalid, memory.determinism, memory.written, memory.bounds,
        agreement.modes, agreement.shapes, agreement.reference, agreement.sizes, agreement.empty_values, agreement.nan,
        gradients.gradient, gradients.gradient_dtypes, gradients.gradient_broadcast, gradients.second_order,
        agreement.vectorized_map, agreement.saved_model,
    )
}  # fmt: skip
CHECKS = tuple(_CHECKS)
# Those that need neither reference nor gradient.
KERNEL_CHECKS = (
    "runs", "empty", "invalid", "determinism", "written", "bounds", "modes", "shapes", "vectorized_map", "saved_model",
)  # fmt: skip


# Those that do not compare the results of several calls.
_SINGLE_CALLS = ("runs", "empty", "invalid", "bounds", "shapes")


def opcheck(
    op: Callable[..., Any], /, *args: Any, checks: Sequence[str] | None = None, device: str | None = None, **attrs: Any
) -> OpReport:
    """Checks an op on the given inputs and on many made of them by its schema.

    Args:
      op: an op of a library, or a function that calls one such op (``custom_ops.rms_norm``).
      args: its inputs, small (a few dozen elements), without ties where that matters. They may go by keyword.
      checks: names out of ``opcheck.CHECKS``; None for all.
      device: "emulated" checks the op's CUDA kernel in place of the one for the CPU, in emulation (see
        ``custom_ops.emulation``); None the CPU's, and the GPU's where there is one.
      attrs: its attributes.

    Returns the report; ``print`` it to see what was checked.

    Raises OpCheckError (its text is the table) if a check fails; ValueError or TypeError for an unknown check, for
    inputs that do not fit the schema and for a function that does not call exactly one op; LoadError for an op without
    a kernel for the device.
    """
    _check_device(device)
    unknown = set(checks or ()) - set(CHECKS)
    if unknown:
        raise ValueError(f"unknown checks {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    report = _report(_subject(op, args, attrs, device), CHECKS if checks is None else checks)
    if report.failed:
        raise OpCheckError(report)
    return report


def pytest_checks(
    op: Callable[..., Any], *args: Any, checks: Sequence[str] = CHECKS, device: str | None = None, **attrs: Any
) -> Any:
    """A test function for pytest with one case per check: ``test_scale = pytest_checks(scale, x, alpha=2.0)``."""
    import pytest

    _check_device(device)
    subjects: list[Subject] = []  # made when the first test runs, shared by all

    @pytest.mark.parametrize("check", checks)
    def test(check: str) -> None:
        if not subjects:
            subjects.append(_subject(op, args, attrs, device))
        report = _report(subjects[0], [check])
        if report.failed:
            pytest.fail(str(report), pytrace=False)
        if report[check].verdict == "skipped":
            pytest.skip(report[check].seen)

    return test


def _check_device(device: str | None) -> None:
    if device not in (None, "emulated"):
        raise ValueError(f"device must be None or 'emulated', got {device!r}")


def _subject(op: Callable[..., Any], args: Sequence[Any], attrs: dict[str, Any], device: str | None) -> Subject:
    child.start()
    return Subject(*the_call(op, args, attrs, device))


def _report(subject: Subject, checks: Sequence[str]) -> OpReport:
    return OpReport(f"{subject.op.tf_name} {subject.op}", tuple(_result(subject, check) for check in checks))


def _result(subject: Subject, check: str) -> Result:
    try:
        if subject.op.schema.stateful and check not in _SINGLE_CALLS and subject.varies:
            raise Skipped("the op is declared stateful, and its results change from call to call")
        with tf.device("/CPU:0"):  # agreement.modes turns to the GPU by itself
            return Result(check, "ok", _CHECKS[check](subject))
    except Failed as failure:
        return Result(check, "FAILED", failure.seen, failure.advice)
    except Skipped as reason:
        return Result(check, "skipped", str(reason))
    except Exception as error:  # from the op, its reference or its gradient
        text = f"raises {type(error).__name__}: {str(error)[:400]}"
        return Result(check, "FAILED", text, "call the op, its reference and its gradient in this way by hand")
