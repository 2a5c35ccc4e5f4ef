"""From an encoded file to a picture.

All of it is TensorFlow, without Python code in the graph, so that it also runs in processes of a tf.data service. What
TensorFlow's decoders get wrong is put right before (``containers``) or done here (``bitmap``).
"""

from collections.abc import Callable

import tensorflow as tf

from tftoolkit.custom_ops.pixels import grayscale
from tftoolkit.pipelines.image import bitmap, containers
from tftoolkit.pipelines.image.feature import entry, named
from tftoolkit.pipelines.sources.source import Example

_EXACT = "INTEGER_ACCURATE"


def decode(channels: int = 3, dtype: tf.DType = tf.uint8, orient: bool = False) -> Callable[..., Example]:
    """Decodes the file in "image": JPEG, PNG, BMP, or the first frame of a GIF or WebP -> [height, width, channels].

    The pixels are those of Pillow's ``convert("RGB")``: palettes become colours, transparency is dropped. JPEG is
    decoded with the accurate integer transform; TensorFlow's default differs from it in most pixels and saves no time.
    Grayscale is the luma of those colours (``convert("L")``), and of a JPEG the luma that it holds (``draft("L")``).
    CMYK is converted as Pillow does it, to within 1.

    Args:
      channels: 3 for RGB, 1 for grayscale.
      dtype: tf.uint8, or tf.uint16 for PNG files of 16 bits. A grayscale PNG of 16 bits (a depth map) is refused as
        uint8, since it would lose its values; one in colours keeps its high bytes, as in Pillow.
      orient: turn the picture upright as the orientation in its EXIF data says (JPEG, PNG, WebP).

    Raises:
      TypeError, ValueError: another number of channels or dtype; "image" is missing or not an encoded file.
      While reading, ``tf.errors.InvalidArgumentError``: the file is empty, truncated, in another format, or has other
        bits than ``dtype``.
    """
    check_channels(channels)
    if dtype not in (tf.uint8, tf.uint16):
        raise TypeError(f"dtype={dtype!r}: must be tf.uint8 or tf.uint16")
    check_orient(orient)
    deep = tf.as_dtype(dtype) == tf.uint16
    more = (", dtype=uint16" if deep else "") + (", orient=True" if orient else "")
    name = f"decode(channels={channels}{more})"

    def stage(example: Example) -> Example:
        contents = encoded_entry("decode", example)
        image = _deep_png(contents, channels) if deep else decoded(contents, channels)
        return {**example, "image": containers.upright(image, contents) if orient else image}

    return named(name, stage)


def check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"channels={channels!r}: must be 3 (RGB) or 1 (grayscale)")


def check_orient(orient: bool) -> None:
    if not isinstance(orient, bool):
        raise TypeError(f"orient={orient!r}: must be True or False")


def decoded(contents: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 [height, width, channels] of a file in any of the formats."""

    def other() -> tf.Tensor:
        is_png = tf.strings.substr(contents, 0, 4) == b"\x89PNG"
        return in_channels(tf.cond(is_png, lambda: _png(contents), lambda: _rare(contents)), channels)

    image = tf.cond(tf.io.is_jpeg(contents), lambda: jpeg(contents, channels), other)
    return tf.ensure_shape(image, [None, None, channels])


def jpeg(contents: tf.Tensor, channels: int, window: tf.Tensor | None = None) -> tf.Tensor:
    """A JPEG, or the part ``window``, int32[4]: top, left, height, width, of one."""

    def plain() -> tf.Tensor:
        if window is None:
            return tf.io.decode_jpeg(contents, channels, dct_method=_EXACT)
        return tf.io.decode_and_crop_jpeg(contents, window, channels, dct_method=_EXACT)

    def cmyk() -> tf.Tensor:
        image = in_channels(_cmyk(contents), channels)
        return image if window is None else tf.image.crop_to_bounding_box(image, *tf.unstack(window))

    return tf.cond(tf.io.extract_jpeg_shape(contents)[2] == 4, cmyk, plain)


def in_channels(colors: tf.Tensor, channels: int) -> tf.Tensor:
    # Not every decoder can convert to gray, and those that can do it each in its own way.
    colors = tf.ensure_shape(colors, [None, None, 3])
    return colors if channels == 3 else tf.cast(grayscale(colors), tf.uint8)


def _png(contents: tf.Tensor) -> tf.Tensor:
    depth, kind = containers.png_depth_and_kind(contents)
    message = "Invalid for uint8: the PNG has 16 bits of gray; read them with image.decode(dtype=tf.uint16)"
    with containers.asserted((depth != 16) | (kind != containers.PNG_GRAY), message):
        return tf.io.decode_png(contents, channels=3)


@containers.once
def _cmyk(contents: tf.Tensor) -> tf.Tensor:
    # libjpeg has no gray of it, and only with Adobe's marker are values taken for inverted, as Pillow always does.
    return tf.io.decode_jpeg(containers.with_adobe_marker(contents), 3, dct_method=_EXACT)


@containers.once
def _rare(contents: tf.Tensor) -> tf.Tensor:
    """A BMP, GIF or WebP, or TensorFlow's error that it is none of the formats."""

    def gif() -> tf.Tensor:
        opaque, frame = containers.opaque_gif(contents)
        return containers.placed(tf.io.decode_image(opaque, channels=3, expand_animations=False), frame)

    def webp() -> tf.Tensor:
        # Channels as they are, since others are refused.
        return tf.io.decode_image(containers.still_webp(contents), channels=0, expand_animations=False)[:, :, :3]

    def unknown() -> tf.Tensor:
        return tf.io.decode_image(contents, channels=3, expand_animations=False)

    begins = [tf.strings.substr(contents, 0, len(kind)) == kind for kind in (b"BM", b"GIF8", b"RIFF")]
    kind = tf.argmax(tf.stack([*begins, True]), output_type=tf.int32)
    return tf.switch_case(kind, [lambda: bitmap.decode_bmp(contents), gif, webp, unknown])


def _deep_png(contents: tf.Tensor, channels: int) -> tf.Tensor:
    depth, _ = containers.png_depth_and_kind(contents)
    message = (
        "Invalid for dtype=uint16: the file is no PNG of 16 bits; read it with image.decode(dtype=tf.uint8). Bits:"
    )
    with containers.asserted(depth == 16, message, depth):
        colors = tf.cast(tf.io.decode_png(contents, channels=3, dtype=tf.uint16), tf.int64)
    if channels == 1:  # the luma of ``grayscale``; of gray, whose channels are equal, gray itself
        colors = (19595 * colors[..., :1] + 38470 * colors[..., 1:2] + 7471 * colors[..., 2:] + 32768) // 65536
    return tf.ensure_shape(tf.cast(colors, tf.uint16), [None, None, channels])


def encoded_entry(stage: str, example: Example) -> tf.Tensor:
    contents = entry(stage, example)
    if contents.dtype != tf.string or contents.shape.rank != 0:
        raise ValueError(
            f"{stage}: 'image' must be the contents of one file (a string), got {contents.dtype.name} "
            f"of shape {contents.shape}"
        )
    return contents
