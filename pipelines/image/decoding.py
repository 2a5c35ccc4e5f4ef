"""From an encoded file to a picture."""

from collections.abc import Callable

import tensorflow as tf

from tftoolkit.custom_ops.pixels import grayscale
from tftoolkit.pipelines.image.feature import entry, named
from tftoolkit.pipelines.sources.source import Example


def decode(channels: int = 3) -> Callable[..., Example]:
    """Decodes the file in "image": JPEG, PNG, BMP or the first frame of a GIF -> uint8 [height, width, channels].

    JPEG is decoded with the accurate integer transform, so the pixels are those of Pillow; TensorFlow's default
    differs from it in most pixels and saves no time. Transparency is dropped; the orientation in EXIF data is ignored.

    Args:
      channels: 3 for RGB, 1 for grayscale.

    Raises:
      ValueError: another number of channels; "image" is missing or not an encoded file.
      While reading, ``tf.errors.InvalidArgumentError``: the file is empty, truncated, or in another format.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels!r}: must be 3 (RGB) or 1 (grayscale)")
    name = f"decode(channels={channels})"

    def stage(example: Example) -> Example:
        return {**example, "image": decoded(encoded_entry("decode", example), channels)}

    return named(name, stage)


def decoded(contents: tf.Tensor, channels: int) -> tf.Tensor:
    def other() -> tf.Tensor:
        # Not every decoder can convert to gray, and those that can do it each in its own way.
        rgb = tf.io.decode_image(contents, channels=3, expand_animations=False)
        if channels == 3:
            return rgb
        rgb.set_shape([None, None, 3])
        return tf.cast(grayscale(rgb), tf.uint8)

    def jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(contents, channels=channels, dct_method="INTEGER_ACCURATE")

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(contents), jpeg, other), [None, None, channels])


def encoded_entry(stage: str, example: Example) -> tf.Tensor:
    contents = entry(stage, example)
    if contents.dtype != tf.string or contents.shape.rank != 0:
        raise ValueError(
            f"{stage}: 'image' must be the contents of one file (a string), got {contents.dtype.name} "
            f"of shape {contents.shape}"
        )
    return contents
