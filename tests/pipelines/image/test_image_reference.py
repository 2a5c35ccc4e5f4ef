"""Image stages against Pillow where it computes the same, else against NumPy in float64."""

import colorsys
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tftoolkit.custom_ops import pixels
from tftoolkit.pipelines import image
from tftoolkit.pipelines.image import color
from tftoolkit.pipelines.image.geometry import METHODS

FILES = {name: Path(sklearn.datasets.__file__).parent / "images" / f"{name}.jpg" for name in ("china", "flower")}
CHINA = np.asarray(Image.open(FILES["china"]))
SMALL = {
    "china": CHINA[100:181, 200:303],
    "flower": np.asarray(Image.open(FILES["flower"]))[150:200, 250:351],
    "dark": CHINA[100:140, 200:260] // 5 + 3,
    "gray": CHINA[50:90, 60:131, :1],
    "two values": np.where(CHINA[:32, :20] > 150, np.uint8(255), np.uint8(0)),
    "constant": np.full([9, 7, 3], 77, np.uint8),
    "constant gray": np.zeros([5, 6, 1], np.uint8),
    "2x2": CHINA[:2, :2],
    "1x5": CHINA[:1, :5],
    "1x1": CHINA[:1, :1],
    "1x1 gray": CHINA[:1, :1, :1],
}
pictures = pytest.mark.parametrize("picture", SMALL.values(), ids=SMALL.keys())


def pil(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def array(picture: Image.Image) -> np.ndarray:
    result = np.asarray(picture)
    return result if result.ndim == 3 else result[..., np.newaxis]


def changed(name: str, magnitude: int, picture: np.ndarray, sign: float = 1.0) -> np.ndarray:
    number = pixels.CHANGES.index(name)
    result = pixels.changed(tf.constant(picture), number, tf.constant(sign, tf.float32), magnitude)
    assert result.dtype == tf.uint8
    return result.numpy()


# Decoding


def encoded(picture: np.ndarray, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pil(picture).save(buffer, form, **options)
    return buffer.getvalue()


def decode(contents: bytes, channels: int = 3) -> np.ndarray:
    result = image.decode(channels)({"image": tf.constant(contents)})["image"]
    assert result.dtype == tf.uint8
    return result.numpy()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["china", "1x1"])
def test_decode_gives_the_pixels_of_pillow(form: str, channels: int, name: str) -> None:
    contents = encoded(SMALL[name], form)
    mode = {3: "RGB", 1: "L"}[channels]
    opened = Image.open(io.BytesIO(contents))
    expected = opened.convert("RGB").convert(mode) if form != "JPEG" else opened
    if form == "JPEG" and channels == 1:
        opened.draft("L", opened.size)  # the decoder's own luma, as TensorFlow takes it
    np.testing.assert_array_equal(decode(contents, channels), array(expected.convert(mode)))


def test_decode_of_photographs_and_gray_files() -> None:
    for path in FILES.values():
        np.testing.assert_array_equal(decode(path.read_bytes()), np.asarray(Image.open(path)))
    gray = SMALL["gray"]
    for form in ("PNG", "BMP"):
        if form == "PNG":
            np.testing.assert_array_equal(decode(encoded(gray, form), 1), gray)
            np.testing.assert_array_equal(decode(encoded(gray, form)), np.repeat(gray, 3, axis=-1))


def test_decode_takes_the_first_frame() -> None:
    frames = [Image.fromarray(np.full([4, 5, 3], value, np.uint8)) for value in (10, 200, 90)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.full([4, 5, 3], 10))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF"])
def test_a_truncated_file_is_an_error(form: str) -> None:
    contents = encoded(SMALL["china"], form)
    for share in (0.0, 0.02, 0.3, 0.6, 0.99):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Invalid|empty|Input size|Unknown image file format"):
            decode(contents[: int(share * len(contents))])


def test_a_foreign_file_is_an_error() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Unknown image file format\. One of JPEG"):
        decode(b"%PDF-1.7 and no picture at all")


# Resizing


def coverage(source: int, target: int) -> np.ndarray:
    """[target, source]: which part of a target pixel each source pixel covers."""
    edges = np.arange(target + 1) * source / target
    low, high = np.arange(source), np.arange(1, source + 1)
    covered = np.minimum(high, edges[1:, np.newaxis]) - np.maximum(low, edges[:-1, np.newaxis])
    return covered.clip(0) * target / source


@pytest.mark.parametrize("size", [(20, 30), (81, 103), (200, 150), (1, 1)])
def test_resize(size: tuple[int, int]) -> None:
    picture = SMALL["china"]
    results = {method: image.resize(*size, method)({"image": tf.constant(picture)})["image"] for method in METHODS}
    for result in results.values():
        assert result.dtype == tf.uint8
        assert result.shape == (*size, 3)
    by_pillow = {
        name: np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling[name.upper()])).astype(int)
        for name in ("bilinear", "nearest")
    }
    assert np.abs(results["bilinear"].numpy() - by_pillow["bilinear"]).max() <= 1
    np.testing.assert_array_equal(results["nearest"], by_pillow["nearest"])
    area = np.einsum("yh,xw,hwc->yxc", coverage(81, size[0]), coverage(103, size[1]), picture.astype(np.float64))
    assert np.abs(results["area"].numpy() - area).max() <= 0.51


def test_resize_of_float_pictures_is_not_rounded() -> None:
    ramp = tf.constant(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1))
    result = image.resize(1, 1, "area")({"image": ramp})["image"]
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, [[[0.5]]], rtol=1e-6)


@pytest.mark.parametrize(("height", "width", "expected"), [(81, 103, (32, 40)), (103, 81, (40, 32)), (7, 7, (32, 32))])
def test_resize_shorter_side(height: int, width: int, expected: tuple[int, int]) -> None:
    result = image.resize_shorter_side(32)({"image": tf.constant(CHINA[:height, :width])})["image"]
    assert result.shape == (*expected, 3)
    reference = np.asarray(Image.fromarray(CHINA[:height, :width]).resize(expected[::-1], Image.Resampling.BILINEAR))
    assert np.abs(result.numpy().astype(int) - reference).max() <= 1


# Places


def test_flips_and_center_crop() -> None:
    for dtype in (np.uint8, np.float32, np.int64):
        example = {"image": tf.constant(SMALL["china"].astype(dtype)), "label": tf.constant(2)}
        for stage, expected in (
            (image.flip_horizontal(), example["image"].numpy()[:, ::-1]),
            (image.flip_vertical(), example["image"].numpy()[::-1]),
            (image.center_crop(30, 40), example["image"].numpy()[25:55, 31:71]),
        ):
            result = stage(example)
            np.testing.assert_array_equal(result["image"], expected)
            assert result["image"].dtype == dtype
            assert int(result["label"]) == 2


# Values


def test_standardize() -> None:
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    result = image.standardize(mean, std)({"image": tf.constant(SMALL["china"])})["image"]
    assert result.dtype == tf.float32
    np.testing.assert_allclose(result, (SMALL["china"].astype(np.float64) - mean) / std, rtol=1e-6, atol=1e-6)
    gray = image.standardize([0.5], [0.25])({"image": tf.constant([[[0.75]]])})["image"]
    np.testing.assert_array_equal(gray, [[[1.0]]])


@pytest.mark.parametrize("factor", [0.0, 0.73, 1.27, 1.9, 5.0])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
@pytest.mark.parametrize("key", ["china", "flower", "dark", "gray", "two values", "constant", "2x2", "1x5", "1x1"])
def test_enhancements_are_those_of_pillow(name: str, factor: float, key: str) -> None:
    picture = SMALL[key]
    adjust = pixels.adjust_sharpness if name == "sharpness" else getattr(pixels, f"adjust_{name}")
    result = adjust(tf.constant(picture), tf.constant(factor, tf.float32))
    enhancer = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color", "sharpness": "Sharpness"}
    expected = getattr(ImageEnhance, enhancer[name])(pil(picture)).enhance(factor)
    np.testing.assert_array_equal(result, array(expected))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_enhancements_of_float_pictures(name: str) -> None:
    picture = SMALL["china"].astype(np.float64) / 255
    gray = (picture @ [19595, 38470, 7471])[..., np.newaxis] / 65536
    low = {"brightness": 0.0, "contrast": gray.mean(), "saturation": gray}[name]
    for factor in (0.3, 1.6):
        adjust = getattr(pixels, f"adjust_{name}")
        result = adjust(tf.constant(picture, tf.float32), tf.constant(factor, tf.float32))
        np.testing.assert_allclose(result, np.clip(low + factor * (picture - low), 0, 1), atol=1e-6)


def test_hue_is_turned() -> None:
    picture = SMALL["flower"][:20, :20]
    for delta in (-0.4, 0.07, 0.5):
        result = color.turn_hue(tf.constant(picture), tf.constant(delta)).numpy()
        for y, x in ((0, 0), (3, 17), (12, 5), (19, 19)):
            h, s, v = colorsys.rgb_to_hsv(*(picture[y, x] / 255))
            expected = 255 * np.array(colorsys.hsv_to_rgb((h + delta) % 1, s, v))
            assert np.abs(result[y, x] - expected).max() <= 0.501


# RandAugment's changes


@pictures
def test_auto_contrast_and_equalize_are_those_of_pillow(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(changed("auto_contrast", 9, picture), array(ImageOps.autocontrast(pil(picture))))
    np.testing.assert_array_equal(changed("equalize", 9, picture), array(ImageOps.equalize(pil(picture))))


def test_auto_contrast_and_equalize_of_all_kinds_of_histograms() -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        low, high = sorted(random.integers(0, 256, 2))
        picture = random.integers(low, high + 1, [*random.integers(1, 40, 2), 3]).astype(np.uint8)
        picture[..., 1] = picture[..., 1] // 16 * 16
        np.testing.assert_array_equal(changed("auto_contrast", 9, picture), array(ImageOps.autocontrast(pil(picture))))
        np.testing.assert_array_equal(changed("equalize", 9, picture), array(ImageOps.equalize(pil(picture))))


@pictures
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_posterize_and_solarize_are_those_of_pillow(picture: np.ndarray, magnitude: int) -> None:
    bits = {0: 8, 9: 7, 30: 4}[magnitude]
    np.testing.assert_array_equal(
        changed("posterize", magnitude, picture), array(ImageOps.posterize(pil(picture), bits))
    )
    threshold = {0: 256, 9: 179.2, 30: 0}[magnitude]
    np.testing.assert_array_equal(
        changed("solarize", magnitude, picture), array(ImageOps.solarize(pil(picture), threshold))
    )


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "sharpness"])
def test_factors_of_the_enhancements(name: str) -> None:
    enhancer = getattr(ImageEnhance, name.capitalize())(pil(SMALL["china"]))
    for magnitude, sign, factor in ((10, 1, 1.3), (10, -1, 0.7), (30, 1, 1.9), (30, -1, 0.1), (0, 1, 1.0)):
        np.testing.assert_array_equal(changed(name, magnitude, SMALL["china"], sign), array(enhancer.enhance(factor)))


def affine_matrix(name: str, part: float, sign: float, height: int, width: int) -> tuple[float, ...]:
    if name == "rotate":
        # As in PIL.Image.rotate: counter-clockwise about the middle.
        angle, x, y = math.radians(-30 * part * sign), width / 2, height / 2
        cos, sin = math.cos(angle), math.sin(angle)
        return (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)
    return {
        "shear_x": (1, sign * 0.3 * part, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * part, 1, 0),
        "translate_x": (1, 0, sign * math.floor(width * 150 / 331 * part), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * math.floor(height * 150 / 331 * part)),
    }[name]


@pictures
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize(("magnitude", "sign"), [(7, 1.0), (30, -1.0), (0, 1.0)])
def test_affine_changes(picture: np.ndarray, name: str, magnitude: int, sign: float) -> None:
    height, width, channels = picture.shape
    matrix = affine_matrix(name, magnitude / 30, sign, height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    source_x = matrix[0] * x + matrix[1] * y + matrix[2]
    source_y = matrix[3] * x + matrix[4] * y + matrix[5]
    column, row = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest = picture[row.clip(0, height - 1), column.clip(0, width - 1)]
    expected = np.where(inside[..., np.newaxis], nearest, np.uint8(128))
    result = changed(name, magnitude, picture, sign)
    # float32 may fall on the other side of the border between two pixels
    on_border = (np.abs(source_x - np.round(source_x)) < 1e-4) | (np.abs(source_y - np.round(source_y)) < 1e-4)
    assert on_border.mean() < 0.15 or height * width < 10
    np.testing.assert_array_equal(result[~on_border], expected[~on_border])

    fill = (128,) * channels if channels == 3 else 128
    transformed = pil(picture).transform((width, height), Image.Transform.AFFINE, matrix, fillcolor=fill)
    if picture is SMALL["china"]:
        assert (result == array(transformed)).all(axis=-1).mean() > 0.99


def test_identity_and_the_number_of_changes() -> None:
    assert len(pixels.CHANGES) == 14
    np.testing.assert_array_equal(changed("identity", 30, SMALL["china"]), SMALL["china"])
    for name in set(pixels.CHANGES) - {"auto_contrast", "equalize"}:
        np.testing.assert_array_equal(changed(name, 0, SMALL["china"]), SMALL["china"], err_msg=name)
