"""Whether a saved state belongs to a pipeline."""

from typing import Any

from tftoolkit.pipelines.errors import StateMismatchError


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
