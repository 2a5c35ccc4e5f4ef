"""How far apart two arrays are."""

import numpy as np


def is_float(value: np.ndarray) -> bool:
    return value.dtype.kind in "fcV"  # V: bfloat16


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """``distance`` of floats; for other than floats the fraction of elements that differs."""
    if is_float(expected):
        return distance(actual, expected)
    return float(np.mean(actual != expected)) if expected.size else 0.0


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    """max|actual - expected|, infinite where only one is finite."""
    if not expected.size:
        return 0.0
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = actual.astype(wide), expected.astype(wide)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(gap), np.inf, gap)))


def fraction_of_other_class(actual: np.ndarray, expected: np.ndarray, nan: bool) -> float:
    """How many elements are not finite, plus or minus infinity as expected.

    Where NaN is expected all are right; where it is found instead of another one only if ``nan`` is False.
    """
    classes = [_class(array) for array in (actual, expected)]
    judged = (classes[1] != 2) & (nan | (classes[0] != 2))
    return float(np.mean((classes[0] != classes[1]) & judged)) if expected.size else 0.0


def _class(array: np.ndarray) -> np.ndarray:
    wide = array if array.dtype.kind == "c" else array.astype(np.float64)
    sign = np.ones(array.shape) if array.dtype.kind == "c" else np.sign(np.nan_to_num(wide))
    return np.where(np.isnan(wide), 2, np.where(np.isinf(wide), sign, 0))
