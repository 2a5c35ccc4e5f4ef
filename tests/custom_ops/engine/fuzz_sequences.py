"""Random calls of sequence losses, most of which their kernels take: labels, lengths and blank within bounds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tftoolkit.custom_ops.engine import sampling

NAMES = tuple(f"{name}{end}" for name in ("CtcLoss", "RnntLoss", "RnntLossAdditive") for end in ("", "Grad"))


def fitting_call(call: sampling.Call, name: str, rng: random.Random) -> sampling.Call:
    """With a blank that is a class, and for ``CtcLoss`` labels of a shape that it takes."""
    inputs = list(call.inputs)
    logits = inputs[0]
    assert isinstance(logits, tuple)
    attributes = {**call.attributes, "blank": rng.randrange(max(1, logits[-1]))}
    if name.startswith("CtcLoss"):
        width = rng.choice((0, 1, 2, 5))
        inputs[1] = (logits[0], width) if rng.random() < 0.5 else (logits[0] * width,)
    return replace(call, inputs=tuple(inputs), attributes=attributes)


def fit_arrays(arrays: list[Any], name: str, attributes: Mapping[str, Any]) -> None:
    """Changes labels and lengths in place, as far as shapes allow; sums of exponentials are positive."""
    first = 2 if "Additive" in name else 1
    labels, frames, counts = arrays[first : first + 3]
    logits = arrays[0]
    if logits.ndim < 3 or labels.ndim not in (1, 2) or logits.shape[-1] < 2 or frames.ndim != 1 or counts.ndim != 1:
        return
    labels %= min(logits.shape[-1] - 1, 100)
    labels += labels >= attributes["blank"]
    frames %= logits.shape[1] + 1
    if labels.ndim == 2:
        counts %= labels.shape[1] + 1
    elif counts.size:
        counts[:] = labels.size // counts.size
        counts[0] += labels.size % counts.size
    if name.endswith("Grad"):
        arrays[-1][:] = 1 + np.abs(arrays[-1])
