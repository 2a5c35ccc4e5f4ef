"""A column of a CSV file: from text to numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_WORDS = frozenset({"true", "false"})
_EXACT_IN_FLOAT64 = 1 << 53


def infer(values: Sequence[str], missing: frozenset[str], default: Any = None) -> tf.DType:
    """bool, else int64, else a float, else string: what all ``values`` can be.

    Integers that lack some, without a default that is one, are floats, for NaN; such bools are strings. How many bits
    floats need is seen at the end, see ``Column``.
    """
    present = [value for value in values if value not in missing]
    if not present:
        return tf.string
    whole = len(present) == len(values)
    if all(value.strip().lower() in _WORDS for value in present):
        return tf.bool if whole or default is not None else tf.string
    if all(_is_integer(value) for value in present):
        return tf.int64 if whole or (default is not None and _is_integer(str(default))) else tf.float64
    return tf.float64 if all(_is_float(value) for value in present) else tf.string


class Column:
    """Values of one column, as they are read.

    Attributes:
      dtype: where a type was ``inferred`` that is a float, float64 at first; from ``tensor`` on, float32 if that is
        enough.
    """

    def __init__(
        self,
        name: str,
        place: int,
        dtype: tf.DType,
        inferred: bool,
        missing: frozenset[str],
        default: Any,
        allow_nan: bool,
    ) -> None:
        self.name, self.place, self.dtype = name, place, dtype
        self._hint = (
            f" (the type follows from the first rows; types={{{name!r}: tf.string}} would allow it)" if inferred else ""
        )
        self._inferred = inferred
        self._missing, self._allow_nan = missing, allow_nan
        self._blocks: list[np.ndarray] = []
        self._default = default
        if default is None and dtype.is_floating:
            self._default = np.nan
        elif default is None and dtype == tf.string:
            self._default = ""
        if default is not None:
            self._check_default()

    def _check_default(self) -> None:
        try:
            self._one(str(self._default))
        except ValueError as error:
            raise ValueError(f"defaults[{self.name!r}]: {error}") from error

    def extend(self, values: Sequence[str]) -> dict[int, str]:
        """Adds values; returns what is wrong with which of them."""
        block = None if self._missing.intersection(values) else self._fast(values)
        bad: dict[int, str] = {}
        if block is None:
            block = np.zeros(len(values), object if self.dtype == tf.string else self.dtype.as_numpy_dtype)
            if self.dtype == tf.string:
                block[:] = b""
            for number, value in enumerate(values):
                try:
                    block[number] = self._missing_value() if value in self._missing else self._one(value)
                except ValueError as error:
                    bad[number] = str(error)
        if self.dtype.is_floating and not self._allow_nan:
            for number in np.flatnonzero(~np.isfinite(block.astype(np.float64))).tolist():
                bad.setdefault(number, f"{values[number]!r} is no finite number")
        self._blocks.append(block)
        return bad

    def tensor(self) -> tf.Tensor:
        """All values."""
        blocks, self._blocks = self._blocks, []
        values = np.concatenate(blocks)
        if self._inferred and self.dtype == tf.float64 and _float32_is_enough(values):
            self.dtype = tf.float32
        return tf.constant(values, self.dtype)

    def _fast(self, values: Sequence[str]) -> np.ndarray | None:
        """All at once, or None if it must be seen one by one what is wrong."""
        try:
            if self.dtype == tf.string:
                return np.array([value.encode() for value in values], object)
            if "_" in "".join(values):  # Python's own way to write large numbers
                return None
            if self.dtype == tf.int64:
                return np.array(list(map(int, values)), np.int64)
            if self.dtype.is_floating:
                exact = np.array(list(map(float, values)))
                if self._inferred and (np.abs(exact) > _EXACT_IN_FLOAT64).any():  # infinite ones too
                    return None
                return None if np.isinf(exact).any() else self._rounded(exact)
        except (ValueError, OverflowError):
            pass
        return None

    def _rounded(self, exact: np.ndarray) -> np.ndarray | None:
        with np.errstate(over="ignore"):
            rounded: np.ndarray = exact.astype(self.dtype.as_numpy_dtype)
        overflowed = np.isinf(rounded.astype(np.float64)) & np.isfinite(exact)
        return None if overflowed.any() else rounded

    def _missing_value(self) -> Any:
        if self._default is None:
            raise ValueError(
                f"the value is missing, and {self.dtype.name} has none for that; give defaults={{{self.name!r}: …}}"
            )
        return self._one(str(self._default))

    def _one(self, value: str) -> Any:
        """Raises ValueError, with the reason."""
        wrong = ValueError(f"{_quoted(value)} is no {self.dtype.name}{self._hint}")
        if self.dtype == tf.string:
            try:
                return value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{_quoted(value)} is no UTF-8; convert the file, or give encoding=…") from error
        if self.dtype == tf.bool:
            if value.strip().lower() not in _BOOLS:
                raise wrong
            return _BOOLS[value.strip().lower()]
        if self.dtype.is_floating:
            if not _is_float(value):
                raise wrong
            exact = float(value)
            if self._inferred and _is_integer(value) and np.isfinite(exact) and int(exact) != int(value):
                raise ValueError(
                    f"{_quoted(value)} has more digits than float64, which integers become where values are missing; "
                    f"give types={{{self.name!r}: tf.int64}} and defaults={{{self.name!r}: …}}, or tf.string"
                )
            rounded = self._rounded(np.array([exact]))
            if rounded is None or (np.isinf(exact) and "inf" not in value.lower()):
                raise ValueError(f"{_quoted(value)} is too large for {self.dtype.name}")
            return rounded[0]
        if not _is_integer(value):
            raise wrong
        if not self.dtype.min <= int(value) <= self.dtype.max:
            raise ValueError(f"{_quoted(value)} does not fit into {self.dtype.name}{self._hint}")
        return int(value)


def _is_integer(value: str) -> bool:
    try:
        int(value)
    except ValueError:
        return False
    return "_" not in value  # Python's own way to write large numbers


def _is_float(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return "_" not in value


def _float32_is_enough(values: np.ndarray) -> bool:
    """Whether whole numbers stay what they are in float32, and values that differ still do."""
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    present = ~np.isnan(values)
    if np.array_equal(rounded[present], values[present]):
        return True
    whole = (values == np.trunc(values)) & (np.abs(values) <= _EXACT_IN_FLOAT64)
    if (np.isinf(rounded) & np.isfinite(values)).any() or (rounded[whole] != values[whole]).any():
        return False
    ordered = np.sort(values[present])
    return not ((ordered[1:] != ordered[:-1]) & (np.diff(ordered.astype(np.float32)) == 0)).any()


def _quoted(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:40]}…")
