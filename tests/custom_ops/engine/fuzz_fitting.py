"""Makes whole numbers what ops of bags and of sequences take: borders that rise, lengths that fit, tags there are."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def fit(name: str, arrays: list[Any], rng: random.Random) -> None:
    """Changes the inputs of an op of this name in place, where they have the ranks that they should have."""
    if name.startswith("EmbeddingBag") and arrays[2].ndim == 1 and rng.random() < 0.9:
        _fit_bags(arrays[1], arrays[2], rows=min(max(1, *arrays[0].shape[:1], 1), 100))
    if name.startswith("Crf") and arrays[0].ndim == 3:
        has_tags = "Likelihood" in name
        lengths = arrays[2 if has_tags else 1]
        lengths %= arrays[0].shape[1] + 1 if arrays[0].shape[2] else 1
        if has_tags:
            arrays[1] %= max(1, arrays[0].shape[2])


def _fit_bags(ids: np.ndarray, row_splits: np.ndarray, rows: int) -> None:
    ids %= rows
    row_splits %= ids.size + 1
    row_splits.sort()
    row_splits[:1], row_splits[-1:] = 0, ids.size
