"""Signs of life for a supervisor: a worker touches a file, ``tftoolkit launch`` looks at its age.

The trainer beats after each call of the runner, each evaluation and each checkpoint. Call :func:`beat` yourself in a
loop of your own, or in an evaluation that takes longer than ``--heartbeat_timeout``. Without a supervisor all of this
does nothing.
"""

import os
import time
from pathlib import Path

VARIABLE = "TFTOOLKIT_HEARTBEAT"
_INTERVAL = 0.25  # seconds; a beat in between costs nothing

_next_beat = 0.0


def beat(saved_step: int | None = None) -> None:
    """Say that this process is alive, and from now on expected to be.

    Args:
        saved_step: the step of a checkpoint that has just been completed. It tells the supervisor that a restart gets
            further than the one before.
    """
    global _next_beat
    name = os.environ.get(VARIABLE)
    now = time.monotonic()
    if not name or (saved_step is None and now < _next_beat):
        return
    _next_beat = now + _INTERVAL
    path = Path(name)
    if saved_step is not None:
        path.write_text(str(saved_step))  # a single write of a few bytes
    path.touch()


def pause() -> None:
    """Say that no beat is to be expected until the next: training is over, what follows may take any time."""
    global _next_beat
    _next_beat = 0.0
    if name := os.environ.get(VARIABLE):
        Path(name).unlink(missing_ok=True)
