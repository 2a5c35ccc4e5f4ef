"""How emulated kernels are run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

_VARIABLES = {"seed": "TFTOOLKIT_EMULATION_SEED", "max_blocks": "TFTOOLKIT_EMULATION_MAX_BLOCKS"}


@contextlib.contextmanager
def settings(*, seed: int | None = None, max_blocks: int | None = None) -> Iterator[None]:
    """Within, calls of emulated kernels in this process, and in those that it starts, run in this way; opcheck's, too.

    The environment variables TFTOOLKIT_EMULATION_SEED and TFTOOLKIT_EMULATION_MAX_BLOCKS say the same.

    Args:
      seed: of the order in which blocks, warps and lanes run; 0, which holds without a setting, is that of their
        numbers.
      max_blocks: what ``tftoolkit::GridBlocks`` gives at most, so that a block comes to its second round on small
        inputs; None or 0 for what the kernel asks for.

    Raises ValueError for a negative number.
    """
    values = {name: value for name, value in (("seed", seed), ("max_blocks", max_blocks)) if value is not None}
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    before = variables()
    put({**before, **{_VARIABLES[name]: str(value) for name, value in values.items()}})
    try:
        yield
    finally:
        put(before)


def variables() -> dict[str, str | None]:
    """The settings at hand, as environment variables; None for those that are not set."""
    return {variable: os.environ.get(variable) for variable in _VARIABLES.values()}


def put(values: Mapping[str, str | None]) -> None:
    """Makes what ``variables`` gave, here or in another process, the settings of this process."""
    for variable, value in values.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value
