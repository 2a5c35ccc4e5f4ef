"""image.decode gives Pillow's colours for every kind of file that Pillow writes, and for kinds made by hand."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageOps

from tftoolkit.pipelines import Pipeline, image, sources
from tftoolkit.pipelines.image import containers

CHINA = Image.open(Path(sklearn.datasets.__file__).parent / "images" / "china.jpg").crop((200, 100, 237, 123))
RANDOM = np.random.default_rng(0)
ALPHA = Image.fromarray(RANDOM.choice(np.array([0, 0, 90, 255], np.uint8), [CHINA.height, CHINA.width]))


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def with_alpha(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.putalpha(ALPHA)
    return picture


def bmp(
    bits: int, body: bytes, *, size: tuple[int, int], packing: int = 0, middle: bytes = b"", head: int = 40
) -> bytes:
    """A bitmap; ``middle``: palette, masks, and what a header longer than 40 bytes has behind them."""
    begin = 54 + len(middle)
    told = struct.pack("<IiiHHIIiiII", head, *size, 1, bits, packing, len(body), 0, 0, len(middle) // 4, 0)
    return struct.pack("<2sIHHI", b"BM", begin + len(body), 0, 0, begin) + told + middle + body


def lines(values: np.ndarray) -> bytes:
    """Rows of numbers as a bitmap has them, from below, each filled up to 4 bytes."""
    return b"".join(row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in values[::-1])


def png(kind: int, values: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG of the dtype of ``values``, [height, width, channels]."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [values[y::dy, x::dx] for x, y, dx, dy in (adam7 if interlaced else ((0, 0, 1, 1),))]
    body = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for part in parts for row in part)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8 * values.itemsize, kind, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def written_by_pillow() -> Iterator[tuple[str, bytes]]:
    modes = {mode: CHINA.convert(mode) for mode in ("RGB", "L", "1", "CMYK", "YCbCr")}
    modes |= {f"P {n}": CHINA.quantize(n) for n in (2, 4, 16, 200)}
    modes |= {"RGBA": with_alpha(CHINA), "LA": with_alpha(CHINA.convert("L")), "PA": CHINA.quantize(9).convert("PA")}
    for form in ("PNG", "BMP", "GIF", "WEBP"):
        for name, picture in modes.items():
            try:
                yield f"{form} {name}", encoded(picture, form)
            except (OSError, ValueError):
                continue  # what this format cannot hold
    for name in ("RGB", "L", "1"):
        yield f"JPEG {name}", encoded(modes[name], "JPEG")
        yield f"JPEG {name} progressive", encoded(modes[name], "JPEG", progressive=True, subsampling=0)
    yield "JPEG RGB inside", encoded(CHINA, "JPEG", keep_rgb=True)
    yield "PNG palette, transparent color", encoded(modes["P 200"], "PNG", transparency=3)
    yield "PNG palette, transparencies", encoded(modes["P 200"], "PNG", transparency=bytes([0, 128, 255] * 20))
    yield "PNG transparent color", encoded(CHINA, "PNG", transparency=CHINA.getpixel((0, 0)))
    yield "PNG transparent gray", encoded(modes["L"], "PNG", transparency=7)
    yield "GIF transparent color", encoded(modes["P 16"], "GIF", transparency=5)
    yield "GIF interlaced", encoded(modes["P 16"], "GIF", interlace=1)
    yield "GIF with a duration", encoded(modes["P 16"], "GIF", duration=30)
    frames = [ImageOps.invert(CHINA).quantize(30), CHINA.quantize(7)]
    yield "GIF animated", encoded(modes["P 16"], "GIF", save_all=True, append_images=frames, comment=b"x" * 300)
    inverted = [ImageOps.invert(CHINA)]
    yield "WEBP animated", encoded(CHINA, "WEBP", save_all=True, append_images=inverted)
    yield "WEBP animated RGBA", encoded(modes["RGBA"], "WEBP", save_all=True, append_images=inverted, lossless=True)
    yield "WEBP animated lossy RGBA", encoded(modes["RGBA"], "WEBP", save_all=True, append_images=inverted)
    yield "WEBP lossless RGBA", encoded(modes["RGBA"], "WEBP", lossless=True, exact=True)


def made_by_hand() -> Iterator[tuple[str, bytes]]:
    size, shape = (13, 7), (7, 13)
    palette = b"".join(bytes([*RANDOM.integers(0, 256, 3), 0]) for _ in range(16))
    values = RANDOM.integers(0, 1 << 16, shape, np.uint16)
    yield "BMP 555", bmp(16, lines(values), size=size)
    for name, masks in {"565": (0xF800, 0x7E0, 0x1F), "555 told": (0x7C00, 0x3E0, 0x1F)}.items():
        yield f"BMP {name}", bmp(16, lines(values), size=size, packing=3, middle=struct.pack("<3I", *masks))
    wide = RANDOM.integers(0, 1 << 32, shape, np.uint32)
    yield "BMP 32", bmp(32, lines(wide), size=size)
    for masks in ((0xFF0000, 0xFF00, 0xFF, 0), (0xFF000000, 0xFF0000, 0xFF00, 0), (0xFF, 0xFF00, 0xFF0000, 0xFF000000)):
        middle = struct.pack("<4I52x", *masks)
        yield f"BMP 32 {masks[0]:x}", bmp(32, lines(wide), size=size, packing=3, middle=middle, head=108)
    yield "BMP 32 no masks", bmp(32, lines(wide), size=size, packing=3, middle=bytes(68), head=108)
    yield "BMP 24", bmp(24, lines(RANDOM.integers(0, 256, [7, 39], np.uint8)), size=size)
    yield "BMP 4", bmp(4, lines(RANDOM.integers(0, 256, [7, 7], np.uint8)), size=size, middle=palette)
    yield "BMP 8 from above", bmp(8, lines(values.astype(np.uint8) % 16)[::1], size=(13, -7), middle=palette)
    yield "BMP 1", bmp(1, lines(RANDOM.integers(0, 256, [7, 2], np.uint8)), size=size, middle=palette[:8])
    os2 = struct.pack("<IHHHH", 12, 13, 7, 1, 4) + b"".join(palette[4 * i : 4 * i + 3] for i in range(16))
    body = lines(RANDOM.integers(0, 256, [7, 7], np.uint8))
    yield "BMP of OS/2", struct.pack("<2sIHHI", b"BM", 14 + len(os2) + len(body), 0, 0, 14 + len(os2)) + os2 + body
    # Runs, literals of odd and even length, ends of lines before and at their ends, a move, and the end of all.
    runs = (
        b"\x0d\x03\0\0"
        + b"\x04\x05\0\x03\1\2\3\0\0\0"
        + b"\0\x04\4\5\6\7\x09\x01\0\0"
        + b"\x02\x0b\0\2\3\2\x03\x0c\0\0\x0d\7\0\1"
    )
    yield "BMP RLE8", bmp(8, runs, size=size, packing=1, middle=palette)
    runs4 = (
        b"\x0d\x3a\0\0"
        + b"\x05\x5c\0\x04\x12\x34\0\0"
        + b"\0\x08\x12\x34\x56\x78\x05\x01\0\0"
        + b"\2\x0b\0\2\3\2\3\x0c\0\0\x0d\x71\0\1"
    )
    yield "BMP RLE4", bmp(4, runs4, size=size, packing=2, middle=palette)
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        yield f"PNG 16 bits, kind {kind}", png(kind, RANDOM.integers(0, 1 << 16, [9, 11, channels], np.uint16))
        yield f"PNG interlaced, kind {kind}", png(kind, RANDOM.integers(0, 256, [9, 11, channels], np.uint8), True)
    yield "GIF smaller frame", smaller_frame(encoded(CHINA.quantize(16), "GIF"))
    yield "GIF smaller frame, transparent", smaller_frame(encoded(CHINA.quantize(16), "GIF", transparency=5))


def smaller_frame(gif: bytes) -> bytes:
    """A screen that is larger than the frame, which lies at (2, 3)."""
    descriptor = gif.index(struct.pack("<BHHHH", 0x2C, 0, 0, CHINA.width, CHINA.height))
    moved = gif[: descriptor + 1] + struct.pack("<HH", 2, 3) + gif[descriptor + 5 :]
    return moved[:6] + struct.pack("<HH", CHINA.width + 4, CHINA.height + 6) + moved[10:]


FILES = dict([*written_by_pillow(), *made_by_hand()])


@functools.cache
def decoder(channels: int, **options: Any) -> Callable[[bytes], np.ndarray]:
    stage = tf.function(image.decode(channels, **options))
    return lambda contents: stage({"image": tf.constant(contents)})["image"].numpy()


def by_pillow(contents: bytes, channels: int = 3) -> np.ndarray:
    opened = Image.open(io.BytesIO(contents))
    if opened.format == "JPEG" and channels == 1:
        opened.draft("L", opened.size)
    pixels = np.asarray(opened.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(opened.height, opened.width, channels)


@pytest.mark.parametrize("channels", [3, 1])
def test_t4_every_kind_of_file_has_the_colors_of_pillow(channels: int) -> None:
    wrong = [
        name
        for name, contents in FILES.items()
        if not np.array_equal(decoder(channels)(contents), by_pillow(contents, channels))
    ]
    assert not wrong
    assert len(FILES) > 60


def test_t4_palette_bmp_has_its_colors() -> None:
    red = encoded(Image.new("RGB", (2, 2), (255, 0, 0)).quantize(4), "BMP")
    np.testing.assert_array_equal(decoder(3)(red), np.full([2, 2, 3], [255, 0, 0]))


@pytest.mark.parametrize("channels", [3, 1])
def test_t4_cmyk_jpeg_is_that_of_pillow_to_within_one(channels: int) -> None:
    inks = encoded(Image.fromarray(RANDOM.integers(0, 256, [20, 30, 4], np.uint8), "CMYK"), "JPEG", quality=95)
    place = inks.index(b"Adobe") + 11
    files = [inks, inks.replace(b"Adobe", b"other"), inks[:place] + b"\x02" + inks[place + 1 :]]  # CMYK, CMYK, YCCK
    for contents in [*files, encoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "JPEG")]:
        expected = by_pillow(encoded(Image.open(io.BytesIO(contents)).convert("RGB"), "PNG"), channels)
        assert np.abs(decoder(channels)(contents).astype(int) - expected).max() <= 1


def test_t4_sixteen_bits_of_gray_are_kept_or_refused() -> None:
    depths = np.array([[0, 200, 255, 1000, 65535]], np.uint16)
    contents = encoded(Image.fromarray(depths), "PNG")
    np.testing.assert_array_equal(decoder(1, dtype=tf.uint16)(contents)[..., 0], depths)
    np.testing.assert_array_equal(decoder(3, dtype=tf.uint16)(contents), np.repeat(depths[..., np.newaxis], 3, -1))
    example, key = {"image": tf.constant(contents)}, tf.constant([0, 0])
    for attempt in (lambda: decoder(1)(contents), lambda: image.random_resized_crop(2, 2)(example, key)):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"16 bits of gray; read them with image\.decode\(dtype"
        ):
            attempt()


def test_t4_sixteen_bits_of_colors() -> None:
    values = RANDOM.integers(0, 1 << 16, [5, 6, 4], np.uint16)
    for kind, channels in ((2, 3), (6, 4)):
        contents = png(kind, values[..., :channels], interlaced=kind == 6)
        np.testing.assert_array_equal(decoder(3, dtype=tf.uint16)(contents), values[..., :3])
        gray = (values[..., :3] @ np.array([19595, 38470, 7471]) + 32768) >> 16
        np.testing.assert_array_equal(decoder(1, dtype=tf.uint16)(contents)[..., 0], gray)
    with_gray = png(4, values[..., :2])
    np.testing.assert_array_equal(decoder(1, dtype=tf.uint16)(with_gray), values[..., :1])
    for name in ("PNG RGB", "JPEG RGB", "BMP 24"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"is no PNG of 16 bits; .*decode\(dtype=tf.uint8\)"):
            decoder(3, dtype=tf.uint16)(FILES[name])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_t4_pictures_are_turned_upright(form: str) -> None:
    for way in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[0x010E], exif[0x0112] = "a description", way
        for endian in "<>":
            exif.endian = endian
            contents = encoded(CHINA, form, exif=exif.tobytes())
            assert int(containers.orientation(tf.constant(contents))) == (way if 1 <= way <= 8 else 1)
            turned = ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGB")
            np.testing.assert_array_equal(decoder(3, orient=True)(contents), np.asarray(turned))
        np.testing.assert_array_equal(decoder(3)(contents), by_pillow(contents))


def test_t4_files_without_an_orientation_stay_as_they_are() -> None:
    for name, contents in FILES.items():
        assert int(containers.orientation(tf.constant(contents))) == 1, name
    for contents in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\0Exif\0\0MM", FILES["JPEG RGB"][:200]):
        assert int(containers.orientation(tf.constant(contents))) == 1


@pytest.mark.parametrize("name", ["BMP P 200", "BMP 1", "BMP 32 ff", "JPEG RGB", "WEBP RGBA"])
def test_t4_random_resized_crop_takes_parts_of_the_same_pixels(name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for orient in (False, True):
        contents = FILES[name]
        if orient and not name.startswith("BMP"):
            contents = encoded(CHINA, name.split()[0], exif=exif.tobytes())
        whole = image.decode(orient=orient)({"image": tf.constant(contents)})
        for channels, number in ((3, 0), (3, 1)):
            crop = image.random_resized_crop(6, 5, channels=channels, orient=orient)
            key = tf.constant([number, 7])
            found = crop({"image": tf.constant(contents)}, key)["image"]
            np.testing.assert_array_equal(found, crop(whole, key)["image"])


@pytest.mark.slow
def test_t4_in_a_pipeline_and_skipped() -> None:
    files = [FILES["BMP P 4"], FILES["GIF transparent color"], FILES["BMP RLE8"][:80], FILES["WEBP animated"]]
    p = Pipeline(sources.arrays({"image": files}), on_error="skip", max_skipped=0.5)
    batch = next(iter(p.map(image.decode(orient=True)).map(image.resize(8, 8)).batch(4)))
    assert batch["image"].shape == (3, 8, 8, 3)


def test_t4_a_bitmap_that_is_cut_off_is_an_error() -> None:
    for name in [name for name in FILES if name.startswith("BMP")]:
        contents = FILES[name]
        for size in (2, 20, 40, 60, len(contents) // 2, len(contents) - 4):
            with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid BMP file"):
                decoder(3)(contents[:size])


def test_t4_parameters_are_checked() -> None:
    with pytest.raises(TypeError, match=r"dtype=tf.float32: must be tf.uint8 or tf.uint16"):
        image.decode(dtype=tf.float32)
    with pytest.raises(TypeError, match="orient=1: must be True or False"):
        image.decode(orient=1)  # type: ignore[arg-type]
    assert image.decode().__name__ == "decode(channels=3)"  # as in states that were saved before
    assert image.decode(1, tf.uint16, True).__name__ == "decode(channels=1, dtype=uint16, orient=True)"
