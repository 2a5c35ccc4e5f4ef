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


REFERENCES: dict[str, Callable[..., list[tuple[np.ndarray, Any]]]] = {
    "RmsNorm": rms_norm,
    "RmsNormGrad": rms_norm_grad,
}
