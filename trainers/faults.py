"""Failures on purpose, to see that a training survives them.

The trainer and its checkpointer pass named points; a fault strikes when one of them is passed for the n-th time::

    with faults.inject("save", action="kill", at=2):      # SIGKILL in the middle of the second save
        trainer.run(steps=1000)

    TFTOOLKIT_FAULTS=save:kill:2,data:raise:7 python train.py      # the same from outside, for any program

========= ============================================================================
point     where
========= ============================================================================
data      before the next batch (or stack of batches) is asked for
step      after a call of the step (one step, or several with ``xla_chunk``)
evaluate  before the evaluation is written down
save      in the middle of writing a checkpoint: the variables are written, no more
manifest  before a checkpoint's manifest is written: everything else is
========= ============================================================================

Actions: ``kill`` (SIGKILL), ``terminate`` (SIGTERM), ``freeze`` (SIGSTOP: as a hung process), ``raise``
(:class:`FaultError`).
"""

import contextlib
import os
import signal
from collections.abc import Iterator

from tftoolkit.errors import CodedError

POINTS = ("data", "step", "evaluate", "save", "manifest")
ACTIONS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "freeze": signal.SIGSTOP, "raise": None}
VARIABLE = "TFTOOLKIT_FAULTS"


class FaultError(CodedError, RuntimeError):
    """Raised by the action "raise"."""

    error_code = "fault-injected"


class _Fault:
    def __init__(self, point: str, action: str, at: int) -> None:
        if point not in POINTS:
            raise ValueError(f"a fault's point must be one of {', '.join(POINTS)}, but is {point!r}")
        if action not in ACTIONS:
            raise ValueError(f"a fault's action must be one of {', '.join(ACTIONS)}, but is {action!r}")
        if at < 1:
            raise ValueError(f"a fault's at counts from 1, but is {at}")
        self.point, self.action, self.remaining = point, action, at

    def strike(self) -> None:
        number = ACTIONS[self.action]
        if number is None:
            raise FaultError(f"injected at {self.point!r}")
        os.kill(os.getpid(), number)


def _from_environment(text: str) -> list[_Fault]:
    faults = []
    for entry in filter(None, text.split(",")):
        point, _, rest = entry.partition(":")
        action, _, at = rest.partition(":")
        if not (at or "1").isdigit():
            raise ValueError(f"{VARIABLE} must hold point:action:number, separated by commas, but has {entry!r}")
        faults.append(_Fault(point, action, int(at or 1)))
    return faults


_armed = _from_environment(os.environ.get(VARIABLE, ""))


@contextlib.contextmanager
def inject(point: str, action: str = "raise", at: int = 1) -> Iterator[None]:
    """Let ``action`` happen when ``point`` is passed for the ``at``-th time within the block.

    Raises:
        ValueError: unknown point or action, or ``at`` below 1.
    """
    fault = _Fault(point, action, at)
    _armed.append(fault)
    try:
        yield
    finally:
        if fault in _armed:
            _armed.remove(fault)


def passing(point: str) -> None:
    """Mark that ``point`` is passed; what is to be tested calls this."""
    for fault in [fault for fault in _armed if fault.point == point]:
        fault.remaining -= 1
        if fault.remaining == 0:
            _armed.remove(fault)
            fault.strike()
