"""Image stages for ``Pipeline.map``: each changes the feature "image" and leaves the rest of the example alone.

Pictures are [height, width, channels]. Random stages draw from the example's key alone, so the same example comes out
the same called on its own and in any batch.
"""

from tftoolkit.pipelines.image.augmenting import rand_augment
from tftoolkit.pipelines.image.color import color_jitter, normalize, standardize
from tftoolkit.pipelines.image.cropping import center_crop, random_crop, random_resized_crop
from tftoolkit.pipelines.image.decoding import decode
from tftoolkit.pipelines.image.erasing import random_erasing
from tftoolkit.pipelines.image.geometry import (
    flip_horizontal,
    flip_vertical,
    random_flip,
    random_shift,
    resize,
    resize_shorter_side,
)
from tftoolkit.pipelines.image.mixing import cutmix, mixup

__all__ = [
    "center_crop",
    "color_jitter",
    "cutmix",
    "decode",
    "flip_horizontal",
    "flip_vertical",
    "mixup",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_resized_crop",
    "random_shift",
    "resize",
    "resize_shorter_side",
    "standardize",
]
