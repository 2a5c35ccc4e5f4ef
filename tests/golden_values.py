"""Values that another library gave once; see tests/golden/."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Golden:
    """The arrays of one case of an op: ``Golden("roi_align", 0).x``; those of pictures channels last."""

    _file = np.load(Path(__file__).parent / "golden" / "detection.npz")

    def __init__(self, op: str, case: object) -> None:
        self._prefix = f"{op}.{case}."

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._file

    def __getattr__(self, name: str) -> np.ndarray:
        array = self._file[self._prefix + name]
        if array.ndim != 4:
            return array
        return array.transpose((2, 3, 1, 0) if name.endswith("weight") else (0, 2, 3, 1))

    @classmethod
    def of(cls, op: str) -> Golden:
        """What the cases of an op have in common."""
        found = cls(op, "")
        found._prefix = f"{op}."
        return found
