"""Results against the reference's, with the naive computation's own error as the yardstick."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tftoolkit.custom_ops.opcheck.graphs import Array, is_inexact, wide


@dataclass(frozen=True)
class Right:
    """What the reference says about a case: results in its dtype, the same in float64, and the error to be allowed.

    ``note`` says why the float64 results are missing (then they are those of ``naive``), or is empty.
    """

    naive: list[Array | None]
    exact: list[Array | None]
    allowance: list[float]
    note: str


def against(names: Iterable[str], actual: Sequence[Array | None], right: Right, order: int = 0) -> list[str]:
    """Texts about results that are further from the exact ones than the allowance."""
    found = []
    for name, one, naive, exact, allowed in zip(names, actual, right.naive, right.exact, right.allowance, strict=True):
        if one is None or naive is None or exact is None:
            # An unconnected input: no gradient and a gradient of zero are the same.
            rest = next((value for value in (one, exact) if value is not None), None)
            if rest is not None and np.any(wide(rest)):
                advice = " (if it shall have none: tf.stop_gradient in the reference)" if one is None else ""
                found.append(f"{name} is {'missing' if one is None else 'there'}, the reference's is not{advice}")
        elif one.shape != naive.shape or one.dtype != naive.dtype:
            found.append(f"{name} is {describe(one)}, the reference's is {describe(naive)}")
        else:
            text = difference(one, exact, allowed, naive)
            if text:
                found.append(f"{name} {text}")
    return found


def difference(one: Array, other: Array, allowed: float, naive: Array | None = None) -> str:
    """Where two arrays differ most, in words, or "" if they agree.

    Infinities and NaN must be equal, except where the naive computation overflows and this one does not. Integers may
    also be the naive computation's, which cuts off or compares what it has rounded.
    """
    if one.shape != other.shape:
        return f"has shape {list(one.shape)}, not {list(other.shape)}"
    left, right = wide(one), wide(other)
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(left - right) if is_inexact(one.dtype) else (left != right).astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right)) if is_inexact(one.dtype) else left == right
    if naive is not None and not is_inexact(one.dtype):
        same |= left == naive
    elif naive is not None:
        plain = wide(naive)
        same |= ~np.isfinite(plain) & ((left == plain) | (np.isnan(left) & np.isnan(plain)))
    distance = np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))
    wrong = distance > (allowed if is_inexact(one.dtype) else 0)
    if not wrong.any():
        return ""
    at = np.unravel_index(int(np.argmax(distance)), distance.shape)
    where = f"[{', '.join(map(str, at))}]" if at else ""
    allowance = f", allowed {allowed:.2g}" if is_inexact(one.dtype) else ""
    count = f"{wrong.sum()} of {wrong.size} wrong"
    return f"is {one[at]:.8g} at {where or 'its only place'}, should be {other[at]:.8g}{allowance} ({count})"


def describe(array: Array) -> str:
    """float32[2, 3]"""
    return f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"


def slack(value: Array, exact: Array, roundings: int) -> float:
    """That many roundings, in the value's dtype, of the largest finite exact value."""
    if not is_inexact(value.dtype):
        return 0.0
    real = value.real.dtype if value.dtype.kind == "c" else value.dtype
    info = ml_dtypes.finfo(real)
    finite = np.abs(wide(exact)[np.isfinite(wide(exact))])
    return roundings * (float(info.eps) * float(finite.max(initial=0.0)) + float(info.tiny))


def error(one: Array | None, other: Array | None) -> float:
    if one is None or other is None or one.shape != other.shape or not is_inexact(one.dtype):
        return 0.0
    with np.errstate(invalid="ignore"):
        distance = np.abs(wide(one) - wide(other))
    return float(distance[np.isfinite(distance)].max(initial=0.0))
