"""Values that users or their code give, as arrays of a feature's dtype and shape: without loss, or refused."""

from typing import Any

import numpy as np
import tensorflow as tf


def exact_array(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """``value`` as an array that ``spec`` describes; of its shape, the first dimension may vary.

    Whole numbers stay what they are; other floats are rounded to the dtype. ``name`` stands in front of messages.

    Raises:
      TypeError: it is not of that kind: text for a number, a number for a bool, ….
      ValueError: another shape, or the dtype cannot hold it.
    """
    text = spec.dtype == tf.string
    value = value.numpy() if isinstance(value, tf.Tensor) else value
    try:
        given = np.asarray(value, object if text else None)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: {_short(value)} is no array of shape {spec.shape}") from error
    if not given.size and spec.shape.rank and given.ndim < spec.shape.rank and given.shape == (0,) * given.ndim:
        given = given.reshape([0, *spec.shape[1:]]) if given.ndim and None not in spec.shape[1:] else given
    if not spec.shape.is_compatible_with(given.shape):
        raise ValueError(f"{name}: {_short(value)} has shape {list(given.shape)} and not {spec.shape}")
    if text:
        return _encoded(name, given)
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    if given.dtype == dtype or not given.size:
        return given.astype(dtype, copy=False)
    if given.dtype.kind not in _KINDS.get(dtype.kind, given.dtype.kind):
        raise TypeError(f"{name}: {_short(value)} is {_kind(given)} and no {spec.dtype.name}")
    if given.dtype.kind != "O" and np.can_cast(given.dtype, dtype, "safe"):
        return given.astype(dtype)
    return _checked(name, value, given, dtype)


# Kinds of dtypes that may become one of a kind. O: Python's integers of more than 64 bits, which do not fit.
_KINDS = {"b": "b", "i": "iuOf", "u": "iuOf", "f": "iufO", "V": "iufOV", "c": "iufcO"}


def _checked(name: str, value: Any, given: np.ndarray, dtype: np.dtype) -> np.ndarray:
    wrong = ValueError(f"{name}: {dtype.name} cannot hold {_short(value)}")
    if given.dtype.kind == "O" and not all(isinstance(one, int) for one in given.flat):
        raise TypeError(f"{name}: {_short(value)} is no {dtype.name}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        lowest, highest = given.min().item() if given.dtype.kind != "O" else min(given.flat), max(given.flat)
        if not (lowest >= limits.min and highest <= limits.max and not (given != np.trunc(given)).any()):
            raise wrong
        return given.astype(dtype)
    with np.errstate(over="ignore"):
        rounded: np.ndarray = given.astype(dtype)
    if given.dtype.kind in "iuO":
        pairs = zip(rounded.astype(np.float64).flat, given.flat, strict=True)
        if not all(np.isfinite(one) and int(one) == int(other) for one, other in pairs):
            raise wrong
    elif (np.isinf(rounded.astype(np.float64)) & np.isfinite(given)).any():
        raise wrong
    return rounded


def _encoded(name: str, given: np.ndarray) -> np.ndarray:
    flat = given.reshape(-1)
    bad = next((one for one in flat if not isinstance(one, str | bytes)), None)
    if bad is not None:
        raise TypeError(f"{name}: {_short(bad)} is no text")
    encoded = np.empty(len(flat), object)
    encoded[:] = [one.encode() if isinstance(one, str) else bytes(one) for one in flat]
    return encoded.reshape(given.shape)


def _kind(given: np.ndarray) -> str:
    return "text" if given.dtype.kind in "SU" else f"{given.dtype.name}"


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
