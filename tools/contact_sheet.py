"""Draws docs/image_stages.jpg: every image stage at work on scikit-learn's photographs, through real pipelines.

python tools/contact_sheet.py docs/image_stages.jpg
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from tftoolkit.pipelines import Pipeline, image, sources
from tftoolkit.pipelines.plan.stage import Paired

HEIGHT, WIDTH = 96, 128  # of one picture
EXAMPLES = 4  # per stage
GAP, TITLE = 6, 20
FOLDER = Path(sklearn.datasets.__file__).parent / "images"

STAGES: list[tuple[str, Any]] = [
    ("decode(), resize(96, 128)", None),  # what the others begin with
    ('resize(48, 64, "nearest")', image.resize(48, 64, "nearest")),
    ("resize_shorter_side(60)", image.resize_shorter_side(60)),
    ("center_crop(64, 64)", image.center_crop(64, 64)),
    ("random_crop(64, 64)", image.random_crop(64, 64)),
    ("random_resized_crop(96, 128) of a file", image.random_resized_crop(HEIGHT, WIDTH)),
    ("random_shift(20)", image.random_shift(20)),
    ("flip_horizontal()", image.flip_horizontal()),
    ("flip_vertical()", image.flip_vertical()),
    ("random_flip(0.5, 0.5)", image.random_flip(0.5, 0.5)),
    ("normalize(255)", image.normalize(255)),
    ("standardize(mean=[128] * 3, std=[64] * 3)", image.standardize([128] * 3, [64] * 3)),
    ("color_jitter(brightness=0.6)", image.color_jitter(brightness=0.6)),
    ("color_jitter(contrast=0.8)", image.color_jitter(contrast=0.8)),
    ("color_jitter(saturation=0.9)", image.color_jitter(saturation=0.9)),
    ("color_jitter(hue=0.3)", image.color_jitter(hue=0.3)),
    ("color_jitter(0.4, 0.4, 0.4, 0.1)", image.color_jitter(0.4, 0.4, 0.4, 0.1)),
    ("rand_augment(num_ops=1, magnitude=15)", image.rand_augment(1, 15)),
    ("rand_augment(num_ops=2, magnitude=9)", image.rand_augment(2, 9)),
    ("rand_augment(num_ops=2, magnitude=25)", image.rand_augment(2, 25)),
    ("random_erasing(probability=1)", image.random_erasing(1.0)),
    ("random_erasing(probability=1, value=0)", image.random_erasing(1.0, value=0)),
    ("mixup(num_classes=2, alpha=1.0)", image.mixup(2, alpha=1.0)),
    ("cutmix(num_classes=2)", image.cutmix(2)),
]


def results(stage: Any) -> list[np.ndarray]:
    files = [(FOLDER / f"{name}.jpg").read_bytes() for name in ("china", "flower")] * (EXAMPLES // 2)
    source = sources.arrays({"image": tf.constant(files), "label": np.arange(EXAMPLES) % 2})
    p = Pipeline(source, seed=1)
    if not getattr(stage, "__name__", "").startswith("random_resized_crop"):
        p = p.map(image.decode()).map(image.resize(HEIGHT, WIDTH))
    if isinstance(stage, Paired):
        return list(next(iter(p.batch(EXAMPLES).map(stage)))["image"].numpy())
    p = (p if stage is None else p.map(stage)).batch(1)
    return [batch["image"].numpy()[0] for batch in p.dataset(epochs=1)]


def shown(picture: np.ndarray) -> Image.Image:
    """As 8 bits: pictures in [0, 1] are stretched, standardised ones shown from −2 to 2."""
    if picture.dtype == np.float32 and picture.min() < 0:
        picture = (picture + 2) / 4
    if picture.dtype == np.float32 and picture.max() <= 1.5:
        picture = picture * 255
    return Image.fromarray(picture.clip(0, 255).round().astype(np.uint8))


def main(path: str) -> None:
    lines = (len(STAGES) + 1) // 2
    block = (EXAMPLES * (WIDTH + GAP) + 2 * GAP, TITLE + HEIGHT + GAP)
    sheet = Image.new("RGB", (2 * block[0], lines * block[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for number, (name, stage) in enumerate(STAGES):
        x, y = number // lines * block[0] + GAP, number % lines * block[1]
        draw.text((x, y + 2), name, "black", font)
        for column, picture in enumerate(results(stage)):
            one = shown(picture)
            left, top = (WIDTH - one.width) // 2, (HEIGHT - one.height) // 2
            sheet.paste(one, (x + column * (WIDTH + GAP) + left, y + TITLE + top))
    sheet.save(path, quality=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
