"""The state of a pipeline: what it says of the stream in 2 KB, and whether a saved one belongs to a pipeline."""

import hashlib
import json
from typing import Any

from tftoolkit.pipelines.arguments import integer
from tftoolkit.pipelines.errors import StateMismatchError
from tftoolkit.pipelines.sources.source import Spec


def position_in(saved: Any) -> int:
    """The position that a state has saved. Raises TypeError or ValueError if it is no state."""
    if not isinstance(saved, dict) or "position" not in saved:
        raise TypeError(f"state: expected a dict that Pipeline.state() returned, got {saved!r}")
    return integer("state['position']", saved["position"], 0)


def check_same(saved: dict[str, Any], own: dict[str, Any]) -> None:
    """Raises StateMismatchError naming each difference other than that of the position."""
    left, right = _flatten(saved), _flatten(own)
    absent = "nothing"
    differences = [
        f"{name}: saved {left.get(name, absent)!r}, this pipeline {right.get(name, absent)!r}"
        for name in sorted(left.keys() | right.keys())
        if name != "position" and left.get(name, absent) != right.get(name, absent)
    ]
    if differences:
        raise StateMismatchError(
            "state: it was saved by another pipeline, so the rest of its stream cannot be continued here: "
            + "; ".join(differences)
        )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, list):
            value = {f"{i}": one for i, one in enumerate(value)}
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def described(spec: Spec) -> dict[str, str]:
    """Shape and dtype of each feature, in the order of their names."""
    return {name: f"{one.dtype.name}{one.shape}" for name, one in sorted(spec.items())}


def shortened(value: Any, limit: int = 400) -> Any:
    """``value``, with what is too long for a state of 2 KB, as JSON, cut and replaced by a digest."""
    if isinstance(value, dict) and _size(value) > limit:
        small = {name: shortened(one, limit // 4) for name, one in value.items()}
        return small if _size(small) <= limit else _digest(value, limit)
    return value if _size(value) <= limit else _digest(value, limit)


def _size(value: Any) -> int:
    return len(json.dumps(value))


def _digest(value: Any, limit: int) -> str:
    text = str(value)
    cut = next(length for length in range(limit // 2, -1, -1) if _size(text[:length]) <= limit // 2 + 2)
    return f"{text[:cut]}… ({hashlib.sha256(text.encode()).hexdigest()[:16]})"
