"""The containers of encoded pictures: what must be known, or put right, before TensorFlow's decoders see them.

Written by the formats' descriptions: JPEG (ITU-T T.81), PNG (W3C), GIF89a, WebP (RFC 9649), EXIF (CIPA DC-008).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

PNG_GRAY = 0  # the kind of a PNG with nothing but gray in it

_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_BYTES = [bytes([value]) for value in range(256)]
_ORIENTATION, _SHORT = 0x0112, 3
_JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
_LOOKED_AT = 64  # at once, at most

# Building a graph costs by the operation, and a picture may be in any format: these are built once for a process.
once = tf.function(
    autograph=False, input_signature=[tf.TensorSpec([], tf.string)], experimental_attributes={"_noinline": True}
)


class Bytes:
    """The bytes of a file, uint8[size]; behind its end there are zeros."""

    def __init__(self, contents: tf.Tensor) -> None:
        self.size = tf.cast(tf.strings.length(contents), tf.int64)
        self._data = tf.io.decode_raw(tf.strings.join([contents, tf.constant(b"\0" * _LOOKED_AT)]), tf.uint8)

    def numbers(self, at: Any, *fields: tuple[int, int], big_endian: bool = False) -> list[tf.Tensor]:
        """Unsigned integers as int64 scalars; fields: (where each begins, counted from ``at``; how many bytes)."""
        weights = np.zeros([len(fields), max(begin + size for begin, size in fields)], np.int64)
        for row, (begin, size) in zip(weights, fields, strict=True):
            row[begin : begin + size] = 256 ** np.arange(size)[:: -1 if big_endian else 1]
        places = tf.minimum(self.size, at) + np.arange(weights.shape[1])
        return tf.unstack(tf.linalg.matvec(weights, tf.cast(tf.gather(self._data, places), tf.int64)))

    def part(self, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
        return self._data[begin : tf.minimum(end, self.size)]


def asserted(condition: tf.Tensor, message: str, *values: tf.Tensor) -> Any:
    """What is computed in this context needs ``condition``, else ``tf.errors.InvalidArgumentError``."""
    check = tf.debugging.Assert(condition, [message, *values])
    return tf.control_dependencies([] if check is None else [check])  # None when called eagerly


def png_depth_and_kind(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Bits of a value and colour type of a PNG; (0, 0) of another file."""
    head = tf.strings.substr(contents, 0, 26)
    depth, kind = Bytes(head).numbers(0, (24, 1), (25, 1))
    is_png = tf.cast(tf.strings.substr(head, 0, 8) == b"\x89PNG\r\n\x1a\n", tf.int64)
    return depth * is_png, kind * is_png


def with_adobe_marker(contents: tf.Tensor) -> tf.Tensor:
    """A JPEG of four components with Adobe's marker in front of all others; one behind it overrides it."""
    begin, rest = tf.strings.substr(contents, 0, 2), tf.strings.substr(contents, 2, tf.strings.length(contents))
    return tf.strings.join([begin, tf.constant(_ADOBE), rest])


class Frame(NamedTuple):
    """Where a GIF's first frame lies in the picture, and the colour of what it leaves out."""

    screen: tf.Tensor  # int64[2]: height, width
    begin: tf.Tensor  # int64[2]: top, left
    size: tf.Tensor  # int64[2]: height, width
    color: tf.Tensor  # uint8[3]


def opaque_gif(contents: tf.Tensor) -> tuple[tf.Tensor, Frame]:
    """The file without transparency in its first frame, for which TensorFlow has black and Pillow a colour; and with
    that frame in the corner, as TensorFlow makes the picture as large as the frame and cuts off what lies outside."""
    data = Bytes(contents)

    def step(at: tf.Tensor, in_blocks: tf.Tensor, control: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """From an extension's begin to its first block, or from a block to the next; the last one is empty."""
        length, label = data.numbers(at, (0, 1), (1, 1))
        is_control = ~in_blocks & (label == 0xF9)
        after = at + tf.where(in_blocks, 1 + length, 2)
        return after, ~in_blocks | (length > 0), tf.where(is_control, at + 3, control)

    def in_extension(at: tf.Tensor, in_blocks: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
        return (at < data.size) & (in_blocks | (data.numbers(at, (0, 1))[0] == 0x21))

    flags = data.numbers(10, (0, 1))[0]
    palette = tf.where(flags >= 128, 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8), 0)
    at, _, control = tf.while_loop(in_extension, step, (13 + palette, tf.constant(False), tf.constant(0, tf.int64)))
    flags, index = data.numbers(control, (0, 1), (3, 1))
    transparent = (control > 0) & (flags % 2 == 1)
    left, top, width, height, own = data.numbers(at, (1, 2), (3, 2), (5, 2), (7, 2), (9, 1))
    entry = tf.where(own >= 128, at + 10, 13) + tf.where(transparent, 3 * index, 0)
    color = tf.cast(tf.stack(data.numbers(entry, (0, 1), (1, 1), (2, 1))), tf.uint8)
    begin, size = tf.stack([top, left]), tf.stack([height, width])
    told = tf.stack(data.numbers(0, (8, 2), (6, 2)))
    opaque = tf.where(
        transparent, _replaced(contents, control, tf.gather(tf.constant(_BYTES), flags // 2 * 2)), contents
    )
    in_corner = tf.where(at + 5 < data.size, _replaced(opaque, at + 1, tf.constant(b"\0\0\0\0")), opaque)
    return in_corner, Frame(tf.maximum(told, begin + size), begin, size, color)


def _replaced(contents: tf.Tensor, at: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    at = tf.cast(tf.minimum(at, tf.cast(tf.strings.length(contents), tf.int64)), tf.int32)
    behind = tf.minimum(at + tf.strings.length(by), tf.strings.length(contents))
    return tf.strings.join([tf.strings.substr(contents, 0, at), by, tf.strings.substr(contents, behind, 1 << 30)])


def placed(image: tf.Tensor, frame: Frame) -> tf.Tensor:
    """The frame in its place, and its colour around it."""
    image = image[: frame.size[0], : frame.size[1]]
    around = tf.stack([frame.begin, frame.screen - frame.begin - frame.size], axis=1)
    inside = tf.pad(tf.ones(frame.size, tf.bool), around)
    return tf.where(inside[:, :, tf.newaxis], tf.pad(image, tf.pad(around, [[0, 1], [0, 0]])), frame.color)


def still_webp(contents: tf.Tensor) -> tf.Tensor:
    """The first frame of an animation as a file of its own; another file as it is.

    TensorFlow refuses animations without transparency, and damages its memory where they are not refused.
    """
    flags = Bytes(tf.strings.substr(contents, 0, 30)).numbers(20, (0, 1))[0]
    animated = (tf.strings.regex_full_match(contents, r"\C{12}VP8X\C*")) & (flags // 2 % 2 == 1)
    return tf.cond(animated, lambda: _first_frame(contents), lambda: contents)


def _first_frame(contents: tf.Tensor) -> tf.Tensor:
    data = Bytes(contents)
    at = _chunk(data, b"ANMF", 12)
    size, left, top, width, height = data.numbers(at, (4, 4), (8, 3), (11, 3), (14, 3), (17, 3))
    canvas_width, canvas_height = data.numbers(24, (0, 3), (3, 3))
    begin, end = at + 24, at + 8 + size  # behind the frame's own header
    whole = (left + top == 0) & (width == canvas_width) & (height == canvas_height) & (begin < end) & (end <= data.size)
    message = "Invalid WebP animation: its first frame is missing, cut off or smaller than the picture"
    with asserted(whole, message):
        frame = tf.strings.substr(contents, begin, end - begin)
    extended = tf.strings.join([tf.constant(b"VP8X\x0a\0\0\0\x10\0\0\0"), tf.strings.substr(contents, 24, 6)])
    has_alpha = tf.strings.substr(frame, 0, 4) == b"ALPH"
    body = tf.strings.join([tf.where(has_alpha, extended, b""), frame])
    digits = (4 + tf.strings.length(body)) // [1, 1 << 8, 1 << 16, 1 << 24] % 256
    length = tf.strings.reduce_join(tf.gather(tf.constant(_BYTES), digits))
    return tf.strings.join([b"RIFF", length, b"WEBP", body])


def _is(value: tf.Tensor, text: bytes) -> tf.Tensor:
    return value == int.from_bytes(text, "little")


def _walk(data: Bytes, begin: int, found: Callable[[Any], tf.Tensor], following: Callable[[Any], Any]) -> tf.Tensor:
    """The first place where ``found``, each ``following`` the one before; the end if there is none."""
    start = tf.constant(begin, tf.int64)
    going_on = lambda at: (at < data.size) & ~found(at)  # noqa: E731
    return tf.minimum(tf.while_loop(going_on, lambda at: [following(at)], [start])[0], data.size)


def _chunk(data: Bytes, name: bytes, begin: int) -> tf.Tensor:
    """Where a chunk of a RIFF file begins; the end if there is none."""

    def following(at: tf.Tensor) -> tf.Tensor:
        length = data.numbers(at, (4, 4))[0]
        return at + 8 + length + length % 2

    return _walk(data, begin, lambda at: _is(data.numbers(at, (0, 4))[0], name), following)


@once
def orientation(contents: tf.Tensor) -> tf.Tensor:
    """1 … 8, as EXIF data in a JPEG, PNG or WebP file say; 1 where they do not."""
    data = Bytes(contents)

    def in_jpeg() -> tf.Tensor:
        def found(at: tf.Tensor) -> tf.Tensor:
            begin, marker, name = data.numbers(at, (0, 1), (1, 1), (4, 6))
            # From the picture's data on, or where no marker stands, there is nothing more to find.
            return (marker == _JPEG_APP1) & _is(name, b"Exif\0\0") | (marker == _JPEG_SCAN) | (begin != 0xFF)

        return 10 + _walk(data, 2, found, lambda at: at + 2 + data.numbers(at, (2, 2), big_endian=True)[0])

    def in_png() -> tf.Tensor:
        def following(at: tf.Tensor) -> tf.Tensor:
            return at + 12 + data.numbers(at, (0, 4), big_endian=True)[0]

        return 8 + _walk(data, 8, lambda at: _is(data.numbers(at, (4, 4))[0], b"eXIf"), following)

    def in_webp() -> tf.Tensor:
        at = _chunk(data, b"EXIF", 12) + 8
        return at + 6 * tf.cast(_is(data.numbers(at, (0, 6))[0], b"Exif\0\0"), tf.int64)

    begins = [tf.strings.substr(contents, 0, len(kind)) == kind for kind in (b"\xff\xd8", b"\x89PNG", b"RIFF")]
    kind = tf.argmax(tf.stack([*begins, True]), output_type=tf.int32)
    at = tf.switch_case(kind, [in_jpeg, in_png, in_webp, lambda: data.size])
    found = _orientation_at(data, at)
    return tf.where((found >= 1) & (found <= 8), found, 1)


def _orientation_at(data: Bytes, at: tf.Tensor) -> tf.Tensor:
    """The value of the tag in the first directory of the TIFF header at ``at``, or 0."""
    order = data.numbers(at, (0, 2))[0]
    big = _is(order, b"MM")

    def number(place: tf.Tensor, size: int) -> tf.Tensor:
        return tf.where(big, *(data.numbers(place, (0, size), big_endian=way)[0] for way in (True, False)))

    begin = at + number(at + 4, 4)
    entries = data.part(begin + 2, begin + 2 + 12 * number(begin, 2))
    entries = tf.cast(tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12]), tf.int64)
    pairs = tf.reshape(entries, [-1, 6, 2]) * tf.where(big, tf.constant([256, 1], tf.int64), [1, 256])
    halves = tf.reduce_sum(pairs, axis=-1)
    found = (halves[:, 0] == _ORIENTATION) & (halves[:, 1] == _SHORT) & (big | _is(order, b"II"))
    return tf.reduce_max(tf.concat([[0], tf.where(found, halves[:, 4], 0)], 0))


def upright(image: tf.Tensor, contents: tf.Tensor) -> tf.Tensor:
    """The picture turned and mirrored as ``orientation`` says."""
    way = orientation(contents)
    turned = tf.cond(way >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    down, right = (
        tf.where(tf.reduce_any(way == tf.constant(mirrored, tf.int64)), -1, 1)
        for mirrored in ([3, 4, 7, 8], [2, 3, 6, 7])
    )
    return tf.ensure_shape(turned[::down, ::right], [None, None, image.shape[-1]])
