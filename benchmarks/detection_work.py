"""What detection.py and detection_torch.py compute: NumPy arrays, pictures channels last."""

from typing import Any

import numpy as np

BINS, SCALE, RATIO = 7, 0.25, 2
THRESHOLD = 0.5
# Boxes and classes of a picture; batch, height, width, channels and boxes; batch, height, width, channels and outputs.
NMS = {"batched_nms": (5000, 80), "batched_nms, one class": (2000, 1), "soft_nms": (1000, 1)}
ROIS = {"roi_align": (2, 100, 152, 256, 512), "roi_pool": (2, 100, 152, 256, 512)}
CONVOLUTIONS = {"deform_conv2d": (2, 50, 76, 128, 128), "deform_conv2d, small": (2, 25, 38, 256, 256)}
NAMES = (*NMS, *ROIS, *CONVOLUTIONS)


def inputs(name: str, divisor: int) -> dict[str, Any]:
    """Named arrays; sizes of pictures and numbers of boxes divided by ``divisor``."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    if name in NMS:
        count, classes = NMS[name]
        n = count // divisor
        return {
            "boxes": _boxes(rng, n, 800, 1200), "scores": rng.random(n, np.float32),
            "classes": rng.integers(0, classes, n),
        }  # fmt: skip
    if name in ROIS:
        batch, height, width, channels, count = ROIS[name]
        height, width, n = height // divisor, width // divisor, count // divisor
        return {
            "features": normal(batch, height, width, channels), "boxes": _boxes(rng, n, height / SCALE, width / SCALE),
            "indices": rng.integers(0, batch, n), "upstream": normal(n, BINS, BINS, channels),
        }  # fmt: skip
    batch, height, width, channels, outputs = CONVOLUTIONS[name]
    size = (batch, height // divisor, width // divisor)
    return {
        "x": normal(*size, channels), "offset": normal(*size, 18), "weight": normal(3, 3, channels, outputs) / 30,
        "bias": normal(outputs), "mask": rng.random((*size, 9), np.float32), "upstream": normal(*size, outputs),
    }  # fmt: skip


def _boxes(rng: np.random.Generator, n: int, height: float, width: float) -> np.ndarray:
    middles, sizes = rng.random((n, 2)) * [width, height], np.exp(rng.uniform(np.log(16), np.log(300), (n, 2)))
    return np.concatenate([middles - sizes / 2, middles + sizes / 2], 1).clip(0, [width, height] * 2).astype(np.float32)
