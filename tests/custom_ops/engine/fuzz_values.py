"""What the fuzzer does with shapes, arrays and outputs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tftoolkit.custom_ops.engine import sampling, shapes


def changed(rng: random.Random, shape: shapes.Shape) -> shapes.Shape:
    """Another rank, or another size in one place."""
    place = rng.randrange(len(shape) + 1)
    size = rng.choice((0, 1, 2, 3, 7))
    way = rng.randrange(3)
    if way == 0:
        return (*shape[:place], size, *shape[place:])
    return (*shape[:place], *shape[place + 1 :]) if way == 1 else (*shape[:place], size, *shape[place + 1 :])


def largest(array: np.ndarray) -> float:
    """The largest finite magnitude in it; that of whole numbers says nothing."""
    magnitudes = np.abs(array.astype(np.float64)) if array.dtype.kind not in "biu" else np.zeros(0)
    return float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes)))


def most_elements(call: sampling.Call) -> int:
    """Of an output. Raises ValueError where the attributes make one impossible."""
    return max(int(np.prod(shape, dtype=object)) for given in call.outputs() for shape in as_shapes(given))


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def as_shapes(given: Any) -> list[shapes.Shape]:
    return given if isinstance(given, list) else [given]


def flat_outputs(outputs: Any) -> list[Any]:
    """Without those that were not asked for."""
    return [item for output in as_list(outputs) for item in as_list(output) if item is not None]
