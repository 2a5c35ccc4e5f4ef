"""How good a detector is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Boxes(NamedTuple):
    """What is in one picture, or what was found in it."""

    boxes: np.ndarray
    """float [n, 4]: x1, y1, x2, y2."""
    labels: np.ndarray
    """int [n]."""
    scores: np.ndarray | None = None
    """float [n]; None for what is really there."""


def mean_average_precision(truth: Sequence[Boxes], found: Sequence[Boxes], iou: float = 0.5) -> float:
    """The mean over classes of the area under the curve of precision over recall, as in PASCAL VOC since 2010.

    A box found is right where it overlaps a real one of its class by at least ``iou`` (intersection over union) that no
    box with a higher score has taken. Precision at a recall is the highest at that or any larger one (Everingham et al.
    2010, https://doi.org/10.1007/s11263-009-0275-4). Classes that are in no picture don't count; without any it is NaN.
    """
    labels = np.unique(np.concatenate([one.labels for one in truth])) if truth else np.zeros(0, int)
    values = [_average_precision(truth, found, label, iou) for label in labels]
    return float(np.mean(values)) if values else float("nan")


def _average_precision(truth: Sequence[Boxes], found: Sequence[Boxes], label: int, iou: float) -> float:
    scores, right = [], []
    for real, seen in zip(truth, found, strict=True):
        assert seen.scores is not None
        chosen = seen.labels == label
        order = np.argsort(-seen.scores[chosen], kind="stable")
        scores.append(seen.scores[chosen][order])
        right.append(_hits(real.boxes[real.labels == label], seen.boxes[chosen][order], iou))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.cumsum(np.concatenate(right)[order])
    precision = hits / np.arange(1, len(hits) + 1)
    recall = hits / sum(int(np.sum(real.labels == label)) for real in truth)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best))


def _hits(real: np.ndarray, seen: np.ndarray, iou: float) -> np.ndarray:
    """Which of the boxes seen, by falling score, are right: bool [n]."""
    overlaps = intersection_over_union(seen, real)
    hits = np.zeros(len(seen), bool)
    for i in range(len(seen) if len(real) else 0):
        best = int(np.argmax(overlaps[i]))
        if overlaps[i, best] >= iou:
            hits[i] = True
            overlaps[:, best] = -1.0  # taken
    return hits


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n, 4], [m, 4] → [n, m]."""
    low = np.maximum(one[:, np.newaxis, :2], other[np.newaxis, :, :2])
    high = np.minimum(one[:, np.newaxis, 2:], other[np.newaxis, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1) for boxes in (one, other)]
    together = areas[0][:, np.newaxis] + areas[1] - shared
    return np.divide(shared, together, out=np.zeros_like(shared), where=together > 0)
