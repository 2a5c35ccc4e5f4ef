"""Lists of tensors by dtype: an op's list has one dtype, a model's weights may have several."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


def dtype_name(tensor: Any) -> str:
    """Of a tensor, array or variable; float32, as TensorFlow has it, for Python's numbers."""
    dtype = getattr(tensor, "dtype", "float32")
    return str(getattr(dtype, "name", dtype))


def by_key(keys: Iterable[_Key]) -> list[list[int]]:
    """Where equal keys stand, in the order in which they first occur."""
    groups: dict[_Key, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def picked(values: Sequence[Any], places: Iterable[int]) -> list[Any]:
    """Those at the places."""
    return [values[place] for place in places]
