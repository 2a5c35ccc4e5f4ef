"""Checks of what a user passes; errors name the argument."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np
import tensorflow as tf


def integer(name: str, value: SupportsIndex, minimum: int) -> int:
    """``value`` as int. Raises TypeError if it is none, ValueError unless ``minimum <= value < 2**63``."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    number = operator.index(value)
    if not minimum <= number < 1 << 63:
        raise ValueError(f"{name}={number}: must be at least {minimum} and below 2**63")
    return number


def integers(name: str, values: Sequence[SupportsIndex], minimum: int) -> list[int]:
    """``values`` as list of int, at least one."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"{name}: expected a list of integers, got {values!r}")
    if not len(values):
        raise ValueError(f"{name}: the list is empty")
    return [integer(f"{name}[{i}]", value, minimum) for i, value in enumerate(values)]


def scalars_of(name: str, values: Mapping[str, Any] | None, spec: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
    """``values``, feature -> scalar, as Python values that each feature's dtype can hold exactly, or to rounding."""
    return {feature: _scalar(f"{name}[{feature!r}]", value, known(name, feature, spec).dtype)
            for feature, value in by_feature(name, values).items()}  # fmt: skip


def by_feature(name: str, values: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if values is not None and not isinstance(values, Mapping):
        raise TypeError(f"{name}: expected a dict feature -> value, got {values!r}")
    return values or {}


def known(name: str, feature: str, spec: Mapping[str, tf.TensorSpec]) -> tf.TensorSpec:
    """The spec of ``feature``. Raises ValueError if there is none."""
    if feature not in spec:
        raise ValueError(f"{name}: there is no feature {feature!r}, only {', '.join(map(repr, spec))}")
    return spec[feature]


def _scalar(name: str, value: Any, dtype: tf.DType) -> Any:
    array = np.asarray(value.numpy() if isinstance(value, tf.Tensor) else value)
    item = array.item() if array.ndim == 0 else None
    if dtype == tf.bool:
        fits = isinstance(item, bool)
    elif dtype == tf.string:
        fits = isinstance(item, str | bytes)
    else:
        allowed = [int, *([float] if not dtype.is_integer else []), *([complex] if dtype.is_complex else [])]
        fits = isinstance(item, tuple(allowed)) and not isinstance(item, bool)
    if not fits:
        raise TypeError(f"{name}={value!r}: expected a scalar of {dtype.name}")
    if dtype.is_integer and not dtype.min <= item <= dtype.max:
        raise ValueError(f"{name}={value!r}: {dtype.name} holds only {dtype.min} … {dtype.max}")
    return item
