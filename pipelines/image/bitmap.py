"""Windows bitmaps, of which TensorFlow's decoder knows neither palettes nor 16 bits nor run-length encoding.

The format: https://learn.microsoft.com/windows/win32/gdi/bitmap-storage. What it leaves open, such as pixels that an
encoder skipped, is done as Pillow does it.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tftoolkit.pipelines.image.containers import Bytes, asserted

_RLE8, _RLE4 = 1, 2
_KNOWN = ([1, 4, 8, 16, 24, 32], [0, _RLE8, _RLE4, 3, 6])  # bits a pixel; compression: none, runs, colours by masks
_MASKS = [[0x7C00, 0x03E0, 0x001F], [0xFF0000, 0xFF00, 0xFF], [0xFF0000, 0xFF00, 0xFF]]  # of 16, 24, 32 bits


class _Header(NamedTuple):
    begin: tf.Tensor  # of the pixels
    palette: tf.Tensor  # where it begins
    color_bytes: tf.Tensor  # of a colour in it
    colors: tf.Tensor  # in it
    width: tf.Tensor
    height: tf.Tensor
    from_above: tf.Tensor
    bits: tf.Tensor  # a pixel
    packing: tf.Tensor
    masks: tf.Tensor  # int64[3]


def decode_bmp(contents: tf.Tensor) -> tf.Tensor:
    """uint8 [height, width, 3] of a file of 1, 4, 8, 16, 24 or 32 bits a pixel."""
    data = Bytes(contents)
    head = _header(data)
    runs = (head.packing == _RLE8) | (head.packing == _RLE4)
    stride = (head.width * head.bits + 31) // 32 * 4
    end = head.begin + tf.where(~runs, stride * head.height, 1)
    sizes = tf.stack([head.width, head.height])
    known = [tf.reduce_any(value == known) for value, known in zip((head.bits, head.packing), _KNOWN, strict=True)]
    with (
        asserted(tf.reduce_all((sizes > 0) & (sizes < 1 << 24)), "Invalid BMP file: its header is cut off or damaged"),
        asserted(
            known[0] & known[1], "Invalid BMP file: unknown bits a pixel or compression:", head.bits, head.packing
        ),
        asserted(end <= data.size, "Invalid BMP file: it is cut off; bytes that it should have:", end),
    ):
        begin = tf.identity(head.begin)

    def lines() -> tf.Tensor:
        return tf.reshape(data.part(begin, end), tf.stack([head.height, stride]))

    def by_index() -> tf.Tensor:
        places = tf.cond(runs, lambda: _from_runs(data, head), lambda: _from_bits(lines(), head))
        return tf.gather(_palette(data, head), places)

    colors = tf.cond(head.bits <= 8, by_index, lambda: _from_masks(lines(), head))
    return tf.ensure_shape(tf.cond(head.from_above, lambda: colors, lambda: colors[::-1]), [None, None, 3])


def _header(data: Bytes) -> _Header:
    fields = [(10, 4), (14, 4), (18, 4), (22, 4), (28, 2), (30, 4), (46, 4), (54, 4), (58, 4), (62, 4)]
    begin, size, width, height, bits, packing, colors, *masks = data.numbers(0, *fields)
    old_width, old_height, old_bits = data.numbers(0, (18, 2), (20, 2), (24, 2))
    old = size == 12  # of OS/2
    signed = tf.where(height >= 1 << 31, height - (1 << 32), height)
    signed, bits = tf.where(old, old_height, signed), tf.where(old, old_bits, bits)
    packing, colors = (tf.where(~old, value, 0) for value in (packing, colors))
    most = tf.bitwise.left_shift(tf.constant(1, tf.int64), tf.minimum(bits, 8))
    # Masks stand behind a header of 40 bytes, and within a longer one, which is the same place.
    plain = tf.gather(tf.constant(_MASKS, tf.int64), tf.clip_by_value(bits // 8 - 2, 0, 2))
    return _Header(
        begin,
        14 + size,
        tf.where(old, tf.constant(3, tf.int64), 4),
        tf.where((colors == 0) | (colors > most), most, colors),
        tf.where(old, old_width, width),
        tf.abs(signed),
        signed < 0,
        bits,
        packing,
        tf.where((packing == 0) | tf.reduce_all(tf.stack(masks) == 0), plain, tf.stack(masks)),
    )


def _palette(data: Bytes, head: _Header) -> tf.Tensor:
    """uint8 [256, 3], RGB; black behind its last colour."""
    size = head.colors * head.color_bytes
    entries = data.part(head.palette, head.palette + size)
    with asserted(tf.size(entries, tf.int64) == size, "Invalid BMP file: its palette is cut off"):
        colors = tf.reshape(entries, tf.stack([head.colors, head.color_bytes]))[:, 2::-1]
    return tf.pad(colors, [[0, 256 - head.colors], [0, 0]])


def _from_bits(lines: tf.Tensor, head: _Header) -> tf.Tensor:
    """int64 [height, width]: places in the palette, the first one in the highest bits of a byte."""
    first = tf.range(head.width) * head.bits
    held = tf.cast(tf.gather(lines, first // 8, axis=1), tf.int64)
    count = tf.bitwise.left_shift(tf.constant(1, tf.int64), head.bits)
    return tf.bitwise.right_shift(held, 8 - head.bits - first % 8) % count


def _from_masks(lines: tf.Tensor, head: _Header) -> tf.Tensor:
    """uint8 [height, width, 3] of pixels of 16, 24 or 32 bits."""
    size = head.bits // 8
    pixels = tf.reshape(lines[:, : head.width * size], tf.stack([head.height, head.width, size]))

    def masked() -> tf.Tensor:
        weights = tf.bitwise.left_shift(tf.constant(1, tf.int64), 8 * tf.range(size))
        values = tf.reduce_sum(tf.cast(pixels, tf.int64) * weights, axis=-1, keepdims=True)
        lowest = tf.maximum(tf.bitwise.bitwise_and(head.masks, -head.masks), 1)  # bit of each mask
        highest = tf.maximum(head.masks // lowest, 1)
        return tf.cast(tf.bitwise.bitwise_and(values, head.masks) // lowest * 255 // highest, tf.uint8)

    whole_bytes = tf.reduce_all(head.masks == tf.constant(_MASKS[1], tf.int64))
    return tf.cond(whole_bytes, lambda: pixels[..., 2::-1], masked)


def _from_runs(data: Bytes, head: _Header) -> tf.Tensor:
    """int64 [height, width]: places in the palette of a picture in RLE8 or, with two pixels in a byte, RLE4."""
    total, nibbles = head.width * head.height, head.packing == _RLE4

    def step(at: tf.Tensor, done: tf.Tensor, pieces: Any, turn: tf.Tensor, _: tf.Tensor) -> tuple[Any, ...]:
        first, second, right, up = data.numbers(at, (0, 1), (1, 1), (2, 1), (3, 1))
        escape, column = first == 0, done % head.width
        literal, move = escape & (second > 2), escape & (second == 2)
        to_end_of_line = tf.where(second == 0, (head.width - column) % head.width, 0)
        skipped = tf.where(move, right + up * head.width, to_end_of_line)
        count = tf.where(literal, second, tf.where(escape, skipped, tf.minimum(first, head.width - column)))
        literal_bytes = tf.where(nibbles, (second + 1) // 2, second)
        held = tf.cond(
            literal,
            lambda: tf.cast(data.part(at + 2, at + 2 + literal_bytes), tf.int64),
            lambda: tf.fill([count], tf.where(escape, tf.zeros_like(second), second)),
        )
        halves = tf.reshape(tf.stack([held // 16, held % 16], axis=1), [-1])
        piece = tf.cond(nibbles, lambda: halves, lambda: held)[:count]
        used = 2 + tf.where(literal, (literal_bytes + 1) // 2 * 2, 2 * tf.cast(move, tf.int64))
        ended = escape & (second == 1)
        return at + used, done + tf.size(piece, tf.int64), pieces.write(turn, piece), turn + 1, ended

    def going_on(at: tf.Tensor, done: tf.Tensor, pieces: Any, turn: tf.Tensor, ended: tf.Tensor) -> tf.Tensor:
        return ~ended & (done < total) & (at + 1 < data.size)

    pieces = tf.TensorArray(tf.int64, 1, dynamic_size=True, infer_shape=False, element_shape=[None])
    pieces = pieces.write(0, tf.zeros([0], tf.int64))
    start = (head.begin, tf.constant(0, tf.int64), pieces, tf.constant(1), tf.constant(False))
    _, done, pieces, _, ended = tf.while_loop(going_on, step, start)
    with asserted(ended | (done >= total), "Invalid BMP file: its runs are cut off"):
        flat = pieces.concat()[:total]
    flat = tf.pad(flat, [[0, total - tf.size(flat, tf.int64)]])
    return tf.reshape(flat, tf.stack([head.height, head.width]))
