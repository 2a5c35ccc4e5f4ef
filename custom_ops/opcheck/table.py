"""An op on a table of cases, such as those in the ``cases.py`` beside every built-in op."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.opcheck import arguments, compare
from tftoolkit.custom_ops.opcheck.report import Result
from tftoolkit.custom_ops.opcheck.subject import Subject, evaluate


class Sized(Protocol):
    """A case: the shape of the op's first input and the dtype of its first dtype variable."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> str: ...


def check_cases(
    op: Op,
    cases: Iterable[Sized],
    *,
    max_elements: int | None = None,
    call_of: Callable[[str, Any], tuple[list[Any], dict[str, Any]] | None] | None = None,
    within: Sequence[Callable[[], contextlib.AbstractContextManager[Any]]] = (contextlib.nullcontext,),
) -> Result:
    """Calls the op eagerly on random inputs for each case; results must be as close to the reference's as opcheck asks.

    Args:
      max_elements: leaves out cases whose shape has more; None takes all.
      call_of: (the op's name, a case) → inputs and attributes, of an op that doesn't take any numbers; None where the
        case is one of another op of the folder.
      within: makes contexts, in each of which each call is made; ``emulation.settings``, say.

    The first finding fails. Raises what the op's reference raises.
    """
    count = 0
    for case in cases:
        if max_elements is not None and math.prod(case.shape) > max_elements:
            continue
        label = f"{case.dtype}{list(case.shape)}"
        call = call_of(op.name, case) if call_of else arguments.make(op, case.shape, case.dtype)
        if call is None:
            continue
        inputs, attributes = call
        subject = Subject(op, inputs, attributes)
        right = subject.right(subject.given, 0)
        for context in within:
            try:
                with context():
                    values = evaluate(subject.function(subject.given), subject.given.flat)
            except Exception as error:  # what the kernel reports
                text = f"{label}: raises {type(error).__name__}: {error}"
                return Result("cases", "FAILED", text, "mend the kernel there")
            if findings := compare.against(subject.outputs, values, right):
                return Result("cases", "FAILED", f"{label}: {findings[0]}", "compare kernel and reference there")
        count += 1
    return Result("cases", "ok", f"{count} cases within twice the error of the naive computation")
