"""Parts of pictures: the middle, a random one, and a random one of random size (Inception's crop)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.pixels import height_width
from tftoolkit.pipelines.image import containers
from tftoolkit.pipelines.image.decoding import check_channels, check_orient, decoded, encoded_entry, jpeg
from tftoolkit.pipelines.image.draws import below, uniform
from tftoolkit.pipelines.image.feature import entry, integer, interval, named, picture, pictures
from tftoolkit.pipelines.image.geometry import check_method, resized
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example

_TRIES = 10  # as in torchvision
# Most JPEG files hold colours at half or a quarter of the resolution. At the border of what is decoded they are
# interpolated otherwise than in the whole picture: so that many pixels more are decoded at each side.
_MARGIN = 4


def center_crop(height: int, width: int) -> Vectorized:
    """The middle height × width pixels; where an odd number of lines is cut off, one more at the bottom or right.

    A stage for ``Pipeline.map``. dtype and channels are kept.

    Raises:
      TypeError, ValueError: a size below 1; the image is missing, not of rank 3, or smaller.
      While reading, ``tf.errors.InvalidArgumentError``: the image is smaller, where its size is not known before.
    """
    integer("height", height, 1)
    integer("width", width, 1)

    def over_rows(batch: Example) -> Example:
        images = pictures("center_crop", batch)
        rows, columns = _room("center_crop", images, height, width)
        top, left = rows // 2, columns // 2
        middle = images[:, top : top + height, left : left + width]
        return {**batch, "image": tf.ensure_shape(middle, [None, height, width, images.shape[-1]])}

    return Vectorized(f"center_crop(height={height}, width={width})", over_rows)


def random_crop(height: int, width: int) -> Vectorized:
    """height × width pixels from a random place; all places are equally likely.

    A stage for ``Pipeline.map``. dtype and channels are kept.

    Raises:
      TypeError, ValueError: as of ``center_crop``; while reading, too.
    """
    integer("height", height, 1)
    integer("width", width, 1)

    def over_rows(batch: Example, keys: tf.Tensor) -> Example:
        images = pictures("random_crop", batch)
        rows, columns = _room("random_crop", images, height, width)
        draws = uniform(keys, 2)
        top, left = below(draws[:, :1], rows + 1), below(draws[:, 1:], columns + 1)
        lines = tf.gather(images, top + tf.range(height), axis=1, batch_dims=1)
        return {**batch, "image": tf.gather(lines, left + tf.range(width), axis=2, batch_dims=1)}

    return Vectorized(f"random_crop(height={height}, width={width})", over_rows)


def _room(stage: str, images: tf.Tensor, height: int, width: int) -> tuple[Any, Any]:
    """By how many rows and columns the images are larger than the crop."""
    rows, columns = height_width(images)
    message = f"{stage}: 'image' is smaller than the crop of {height} × {width} pixels"
    if isinstance(rows, int) and isinstance(columns, int):
        if rows < height or columns < width:
            raise ValueError(f"{message}: it has {rows} × {columns}")
    else:
        fits = tf.logical_and(rows >= height, columns >= width)
        check = tf.debugging.Assert(fits, [f"{message}:", rows, columns])
        with tf.control_dependencies([] if check is None else [check]):  # None when called eagerly
            rows = tf.identity(rows)
    return rows - height, columns - width


def random_resized_crop(
    height: int,
    width: int,
    area: Sequence[float] = (0.08, 1.0),
    aspect: Sequence[float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
    channels: int = 3,
    orient: bool = False,
) -> Callable[..., Example]:
    """A random part of the picture with random size and aspect ratio, resized to height × width pixels.

    Inception's training crop (Szegedy et al., 2015) as torchvision's ``RandomResizedCrop`` does it: the part's share of
    the area is uniform in ``area``, the logarithm of width / height uniform in that of ``aspect``, all places are
    equally likely; if 10 tries give no part that fits, the largest middle part with a permitted aspect ratio is taken.

    Takes a picture or, instead of ``decode``, the encoded file: of a JPEG only the part is then decoded, which saves
    about half the time and gives the same pixels. A file that is damaged or cut off behind the part goes unnoticed.

    Args:
      height, width: of the result, in pixels.
      area: smallest and largest share of the picture's area, in (0, 1].
      aspect: smallest and largest width / height of the part.
      method: as in ``resize``.
      channels, orient: of an encoded file, as in ``decode``. What must be turned is decoded as a whole.

    A stage for ``Pipeline.map``. dtype (uint8 or float32) and channels are kept.

    Raises:
      TypeError, ValueError: a parameter out of range; the image is missing, not of rank 3, or of another dtype.
      While reading, ``tf.errors.InvalidArgumentError``: the file is damaged or in another format.
    """
    integer("height", height, 1)
    integer("width", width, 1)
    areas, aspects = interval("area", area, 0, 1), interval("aspect", aspect, 0)
    check_method(method)
    check_channels(channels)
    check_orient(orient)
    name = "random_resized_crop"

    def window(key: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
        draws = tf.reshape(uniform(key[tf.newaxis], 4 * _TRIES), [_TRIES, 4])
        return crop_window(draws, shape[0], shape[1], areas, aspects)

    def stage(example: Example, key: tf.Tensor) -> Example:
        if entry(name, example).dtype == tf.string:
            part = _decoded_part(encoded_entry(name, example), channels, orient, lambda shape: window(key, shape))
        else:
            image = picture(name, example)
            part = _part(image, window(key, tf.shape(image)))
        return {**example, "image": resized(name, part, height, width, method)}

    parameters = f"height={height}, width={width}, area={areas}, aspect={aspects}, method={method}, channels={channels}"
    parameters += ", orient=True" if orient else ""
    return named(f"{name}({parameters})", stage)


def crop_window(
    draws: tf.Tensor, height: tf.Tensor, width: tf.Tensor, area: tuple[float, float], aspect: tuple[float, float]
) -> tf.Tensor:
    """int32[4]: top, left, height, width of the first try, a row of ``draws`` float64[tries, 4], that fits."""
    height, width = tf.cast(height, tf.float64), tf.cast(width, tf.float64)
    target = height * width * (area[0] + (area[1] - area[0]) * draws[:, 0])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = tf.exp(low + (high - low) * draws[:, 1])
    heights, widths = tf.round(tf.sqrt(target / ratio)), tf.round(tf.sqrt(target * ratio))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = tf.argmax(fits)
    # Where nothing fits: all of it, less what makes it too wide or too high.
    widest = tf.maximum(tf.minimum(width, tf.round(height * aspect[1])), 1.0)
    highest = tf.maximum(tf.minimum(height, tf.round(width / aspect[0])), 1.0)
    tried = tf.stack([heights[first], widths[first], draws[first, 2], draws[first, 3]])
    size_and_place = tf.where(tf.reduce_any(fits), tried, tf.stack([highest, widest, 0.5, 0.5]))
    rows, columns = tf.cast(size_and_place[0], tf.int32), tf.cast(size_and_place[1], tf.int32)
    top = below(size_and_place[2], tf.cast(height, tf.int32) - rows + 1)
    left = below(size_and_place[3], tf.cast(width, tf.int32) - columns + 1)
    return tf.stack([top, left, rows, columns])


def _part(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    part = tf.slice(image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [-1]], 0))
    return tf.ensure_shape(part, [None, None, image.shape[-1]])


def _decoded_part(
    contents: tf.Tensor, channels: int, orient: bool, window: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    def part_of_jpeg() -> tf.Tensor:
        shape = tf.io.extract_jpeg_shape(contents)
        crop = window(shape)
        start = tf.maximum(crop[:2] - _MARGIN, 0)
        size = tf.minimum(crop[:2] + crop[2:] + _MARGIN, shape[:2]) - start
        image = jpeg(contents, channels, tf.concat([start, size], 0))
        return _part(image, tf.concat([crop[:2] - start, crop[2:]], 0))

    def part_of_all() -> tf.Tensor:
        image = decoded(contents, channels)
        image = containers.upright(image, contents) if orient else image
        return _part(image, window(tf.shape(image)))

    in_parts = tf.io.is_jpeg(contents)
    if orient:
        in_parts &= containers.orientation(contents) == 1
    return tf.ensure_shape(tf.cond(in_parts, part_of_jpeg, part_of_all), [None, None, channels])
