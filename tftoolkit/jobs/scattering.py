"""Digits of any size anywhere in a picture: what makes the small ones of scikit-learn hard."""

from __future__ import annotations

import numpy as np
from PIL import Image


def scattered(images: np.ndarray, size: int, sides: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Each image somewhere in a dark picture of its own, and of another size.

    Args:
      images: float32 [n, height, width, 1] from 0 to 1.
      size: of the pictures, in pixels.
      sides: the smallest and the largest side of what lies in them.

    Returns float32 [n, size, size, 1].
    """
    pictures = np.zeros([len(images), size, size, 1], np.float32)
    for picture, image in zip(pictures, images, strict=True):
        side = int(rng.integers(sides[0], sides[1] + 1))
        x, y = rng.integers(0, size - side + 1, 2)
        picture[y : y + side, x : x + side, 0] = enlarged(image[..., 0], side)
    return pictures


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """float32 [height, width] from 0 to 1 → [side, side]."""
    return np.clip(np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)), 0.0, 1.0)
