"""What fuzzed ops must give: float64 arrays and attributes → for each output its value and the size of its terms.

Ops without an entry are compared with the reference that they have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def rms_norm(x: np.ndarray, gamma: np.ndarray, *, epsilon: float) -> list[tuple[np.ndarray, Any]]:
    inv = 1 / np.sqrt(np.mean(x * x, axis=-1) + epsilon)
    y = x * inv[..., np.newaxis] * gamma
    return [(y, np.abs(y)), (inv, np.abs(inv))]


def rms_norm_grad(
    dy: np.ndarray, d_inv_rms: np.ndarray, x: np.ndarray, gamma: np.ndarray, inv_rms: np.ndarray
) -> list[tuple[np.ndarray, Any]]:
    inv = inv_rms[..., np.newaxis]

    def gradients(dy: Any, d_inv: Any, x: Any, gamma: Any, inv: Any, sign: int) -> tuple[np.ndarray, np.ndarray]:
        dot = np.sum(dy * gamma * x, axis=-1, keepdims=True) + d_inv[..., np.newaxis]
        dgamma = np.sum((dy * x * inv).reshape(-1, x.shape[-1]) if x.size else np.zeros((1, x.shape[-1])), axis=0)
        return inv * dy * gamma - sign * x * inv**3 * (dot / x.shape[-1]), dgamma

    values = gradients(dy, d_inv_rms, x, gamma, inv, 1)
    terms = gradients(*map(np.abs, (dy, d_inv_rms, x, gamma, inv)), -1)
    return list(zip(values, terms, strict=True))


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box of each set, [sets, 1, 4], with all, [sets, n, 4]."""
    low, high = np.maximum(box[..., :2], boxes[..., :2]), np.minimum(box[..., 2:], boxes[..., 2:])
    both = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(one[..., 2:] - one[..., :2], -1) for one in (box, boxes)]
    return np.asarray(both / (areas[0] + areas[1] - both))


def batched_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray | None,
    *,
    iou_threshold: float,
    max_output: int,
    score_threshold: float,
) -> list[tuple[np.ndarray, Any]]:
    outer, n = scores.shape[:-1], scores.shape[-1]
    sets = int(np.prod(outer))
    boxes, scores = boxes.reshape(sets, n, 4), scores.reshape(sets, n)
    classes = np.zeros(scores.shape) if classes is None else classes.reshape(sets, n)
    alive = scores > score_threshold
    indices = np.full((sets, max_output), -1)
    for i in range(max_output if n else 0):
        best = np.argmax(np.where(alive, scores, -np.inf), 1)[:, None]
        indices[:, i] = np.where(alive.any(1), best[:, 0], -1)
        box = np.take_along_axis(boxes, best[..., None], 1)
        same = np.take_along_axis(classes, best, 1) == classes
        alive &= ~((overlaps(box, boxes) > iou_threshold) & same) & (np.arange(n) != best)
    return [(indices.reshape(*outer, max_output), 0), (np.sum(indices >= 0, 1).reshape(outer), 0)]


REFERENCES: dict[str, Callable[..., list[tuple[np.ndarray, Any]]]] = {
    "BatchedNms": batched_nms,
    "RmsNorm": rms_norm,
    "RmsNormGrad": rms_norm_grad,
}
