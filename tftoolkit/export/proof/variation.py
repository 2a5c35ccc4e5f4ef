"""Whether a bound says anything: an output that varies by less than it may be off is not proven by it.

One tensor may hold boxes in pixels and scores between 0 and 1. In integers it has one scale, and a file whose scores
are all zero is within the bound of the boxes. So for each output, and for each channel of its last axis, a file must be
seen to follow TensorFlow's values wherever a constant would be within the bound, too: it must explain half of their
variance.
"""

from __future__ import annotations

import collections

import numpy as np

from tftoolkit.export.convert.formats import Format
from tftoolkit.export.proof.distance import is_float

EXPLAINED = 0.5  # the part of the variance that a file's values must explain where the bound says nothing
OWN = 4.0  # roundings of a channel's magnitude, which it would be off even as an output of its own; and at least
OWN_LEAST = 1e-3
NOISE = 2.0**-20  # of an output's magnitude: a channel of only that is made of roundings in float32
LEAST, LEAST_WHOLE = 8, 4  # values of a channel, and of an output, from which variances are taken
NAMED = 6  # runs of channels in a message


class Variation:
    """How one output varies over all calls of a kind, and how far from it a file is."""

    def __init__(self) -> None:
        self._channels: _Sums | None = None
        self._distribution = True
        self._seen: collections.Counter[object] = collections.Counter()
        self._differing = 0

    def see(self, expected: np.ndarray, actual: np.ndarray) -> None:
        if not expected.size:
            return
        if not is_float(expected):
            values, counts = np.unique(expected, return_counts=True)
            self._seen.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            self._differing += int(np.sum(expected != actual))
        if expected.dtype.kind in "fViu":
            size = expected.shape[-1] if expected.ndim > 1 else 1
            wide, found = (array.astype(np.float64).reshape(-1, size) for array in (expected, actual))
            # The parts of a distribution are one quantity: small probabilities may be lost beside large ones.
            self._distribution &= bool(np.all(wide >= 0) and np.allclose(wide.sum(axis=1), 1.0, atol=1e-2))
            sums = _Sums.of(wide, found)
            self._channels = sums if self._channels is None else self._channels.joined(sums)

    def unproven(self, bound: float, number_format: Format) -> str | None:
        """The part of the output of which nothing is proven, as an index ("" for all of it), or None."""
        if self._seen and bound <= 1.0:
            total = self._seen.total()
            varies = 1.0 - self._seen.most_common(1)[0][1] / total
            lost = 0.0 < varies <= bound and self._differing / total > EXPLAINED * varies
            return "" if lost and total >= LEAST else None
        if self._channels is None:
            return None
        own = max(OWN * max(number_format.rounding, number_format.weights), OWN_LEAST)
        if self._channels.whole().lost(bound, own, LEAST_WHOLE)[0]:
            return ""
        magnitude = self._channels.magnitude
        lost = self._channels.lost(bound, own, LEAST) & (magnitude > NOISE * magnitude.max())
        return None if self._distribution or not lost.any() else _indices(lost)


class _Sums:
    """Of each channel: number, sum, squares and squared errors of its values, the least and the largest."""

    def __init__(self, sums: np.ndarray, least: np.ndarray, most: np.ndarray) -> None:
        self.sums, self.least, self.most = sums, least, most

    @classmethod
    def of(cls, expected: np.ndarray, actual: np.ndarray) -> _Sums:
        """Of two arrays [values, channels]; what is not finite doesn't count."""
        both = np.isfinite(expected) & np.isfinite(actual)
        wide, found = np.where(both, expected, 0.0), np.where(both, actual, 0.0)
        sums = np.stack([part.sum(axis=0) for part in (both, wide, np.square(wide), np.square(wide - found))])
        least, most = np.where(both, wide, np.inf).min(axis=0), np.where(both, wide, -np.inf).max(axis=0)
        return cls(sums, least, most)

    def whole(self) -> _Sums:
        return _Sums(self.sums.sum(axis=1, keepdims=True), self.least.min(keepdims=True), self.most.max(keepdims=True))

    def joined(self, other: _Sums) -> _Sums:
        if self.sums.shape != other.sums.shape:  # the last axis is free: its places are no channels
            return self.whole().joined(other.whole())
        return _Sums(self.sums + other.sums, np.minimum(self.least, other.least), np.maximum(self.most, other.most))

    @property
    def magnitude(self) -> np.ndarray:
        return np.maximum(np.abs(self.least), np.abs(self.most))

    def lost(self, bound: float, own: float, least: int) -> np.ndarray:
        """In which channels a constant is within the bound, and the file is hardly better than one.

        ``own``: the part of a channel's magnitude by which it may be off all the same.
        """
        count, total, squares, errors = self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / count
            variance = np.maximum(squares / count - np.square(mean), 0.0)
            half = (self.most - self.least) / 2
            useless = errors / count > EXPLAINED * np.maximum(variance, np.square(own * self.magnitude))
        return (count >= least) & (self.magnitude > 0) & (half <= bound) & useless


def _indices(lost: np.ndarray) -> str:
    """[..., 4:] or [..., 0] and [..., 3:7]"""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(np.int8), [0]])))
    runs = [_index(int(start), int(end), lost.size) for start, end in edges.reshape(-1, 2)]
    return " and ".join(runs[:NAMED]) + (f" and {len(runs) - NAMED} more" if len(runs) > NAMED else "")


def _index(start: int, end: int, size: int) -> str:
    if end - start == 1 and size > 1:
        return f"[..., {start}]"
    return f"[..., {start or ''}:{end if end < size else ''}]"
