"""Projective transforms of images by grid_sample, under the meanings of TensorFlow Addons 0.23.

Plain TensorFlow functions: they compute the points, and the kernel reads the pixels. Points are in pixels, float32, and
carry gradients, so angles, shifts and transforms can be learnt; TensorFlow Addons had gradients by the images only,
which were those of the inverse transform.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tftoolkit.custom_ops.grid_sample import sample_pixels

if TYPE_CHECKING:
    import tensorflow as tf

_INTERPOLATIONS = ("nearest", "bilinear")
_FILL_MODES = ("constant", "reflect", "wrap", "nearest")
_SAMPLED = ("float32", "bfloat16", "float16")  # dtypes that the kernel has


def image_transform(
    images: Any,
    transforms: Any,
    interpolation: str = "nearest",
    fill_mode: str = "constant",
    output_shape: Any = None,
    name: str | None = None,
    fill_value: float = 0.0,
) -> tf.Tensor:
    """Applies projective transforms, as ``tfa.image.transform`` did.

    Args:
      images: [batch, height, width, channels], [height, width, channels] or [height, width]; float32, bfloat16 or
        float16, or what TensorFlow's own op takes: uint8, int32, int64 and float64, without gradients by the transforms
        and not under XLA.
      transforms: [8] or [batch, 8]: with [a0, a1, a2, b0, b1, b2, c0, c1] the *output's* pixel (x, y) comes from
        ((a0 x + a1 y + a2) / k, (b0 x + b1 y + b2) / k) of the image, where k = c0 x + c1 y + 1.
      interpolation: "nearest" (halves go away from 0) or "bilinear"; capitals will do.
      fill_mode: what lies outside: "constant" is fill_value, "reflect" mirrors at the outer edges (d c b a | a b c d |
        d c b a), "wrap" begins anew (a b c d | a b c d | a b c d), "nearest" is the nearest pixel.
      output_shape: [height, width] of the result; None for the images'.
      fill_value: for "constant", and where k is 0.

    Returns:
      The images' dtype and rank. Differentiable by images and, with "bilinear", by transforms.

    Raises:
      TypeError, ValueError: a rank of images or transforms, an interpolation or fill mode other than these.
    """
    import tensorflow as tf

    interpolation, fill_mode = interpolation.lower(), fill_mode.lower()
    for what, value, allowed in (
        ("interpolation", interpolation, _INTERPOLATIONS),
        ("fill_mode", fill_mode, _FILL_MODES),
    ):
        if value not in allowed:
            raise ValueError(f"{what} = {value!r}: must be one of {', '.join(allowed)}")
    with tf.name_scope(name or "image_transform"):
        images = tf.convert_to_tensor(images)
        batch = _as_batch(images)
        transforms = tf.cast(transforms, tf.float32)
        if transforms.shape.rank not in (1, 2):
            raise TypeError(f"transforms must have rank 1 or 2, got shape {transforms.shape}")
        transforms = transforms[tf.newaxis] if transforms.shape.rank == 1 else transforms
        size = tf.shape(batch)[1:3] if output_shape is None else tf.cast(output_shape, tf.int32)
        if images.dtype.name in _SAMPLED:
            found = _sampled(batch, transforms, interpolation, fill_mode, size, fill_value)
        else:
            found = tf.raw_ops.ImageProjectiveTransformV3(
                images=batch, transforms=transforms, output_shape=size, fill_value=fill_value,
                interpolation=interpolation.upper(), fill_mode=fill_mode.upper(),
            )  # fmt: skip
        return _like(found, images)


def rotate(
    images: Any,
    angles: Any,
    interpolation: str = "nearest",
    fill_mode: str = "constant",
    name: str | None = None,
    fill_value: float = 0.0,
) -> tf.Tensor:
    """Turns images counterclockwise around their middle, as ``tfa.image.rotate`` did.

    Args:
      images, interpolation, fill_mode, fill_value: as in :func:`image_transform`.
      angles: in radians; one, or [batch].

    Returns:
      The images' dtype and shape. Differentiable by images and, with "bilinear", by angles.

    Raises:
      TypeError, ValueError: as :func:`image_transform`; a rank of angles other than these.
    """
    import tensorflow as tf

    with tf.name_scope(name or "rotate"):
        images, angles = tf.convert_to_tensor(images), tf.cast(angles, tf.float32)
        if angles.shape.rank not in (0, 1):
            raise TypeError(f"angles must have rank 0 or 1, got shape {angles.shape}")
        angles = tf.reshape(angles, [-1])
        bottom, right = tf.unstack(tf.cast(tf.shape(_as_batch(images))[1:3] - 1, tf.float32))
        cos, sin, zero = tf.cos(angles), tf.sin(angles), tf.zeros_like(angles)
        x = (right - (cos * right - sin * bottom)) / 2.0
        y = (bottom - (sin * right + cos * bottom)) / 2.0
        transforms = tf.stack([cos, -sin, x, sin, cos, y, zero, zero], axis=1)
        return image_transform(images, transforms, interpolation, fill_mode, fill_value=fill_value)


def translate(
    images: Any,
    translations: Any,
    interpolation: str = "nearest",
    fill_mode: str = "constant",
    name: str | None = None,
    fill_value: float = 0.0,
) -> tf.Tensor:
    """Moves images, as ``tfa.image.translate`` did.

    Args:
      images, interpolation, fill_mode, fill_value: as in :func:`image_transform`.
      translations: in pixels: [dx, dy] to the right and down, or [batch, 2].

    Returns:
      The images' dtype and shape. Differentiable by images and, with "bilinear", by translations.

    Raises:
      TypeError, ValueError: as :func:`image_transform`; a rank of translations other than these.
    """
    import tensorflow as tf

    with tf.name_scope(name or "translate"):
        translations = tf.cast(translations, tf.float32)
        if translations.shape.rank not in (1, 2):
            raise TypeError(f"translations must have rank 1 or 2, got shape {translations.shape}")
        dx, dy = tf.unstack(tf.reshape(translations, [-1, 2]), axis=1)
        one, zero = tf.ones_like(dx), tf.zeros_like(dx)
        transforms = tf.stack([one, zero, -dx, zero, one, -dy, zero, zero], axis=1)
        return image_transform(images, transforms, interpolation, fill_mode, fill_value=fill_value)


def _as_batch(images: tf.Tensor) -> tf.Tensor:
    rank = images.shape.rank
    if rank == 2:
        return images[None, :, :, None]
    if rank == 3:
        return images[None]
    if rank != 4:
        raise TypeError(f"images must have a known rank of 2 to 4, got shape {images.shape}")
    return images


def _like(found: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    rank = images.shape.rank
    return found[0, :, :, 0] if rank == 2 else found[0] if rank == 3 else found


def _sampled(
    images: tf.Tensor, transforms: tf.Tensor, interpolation: str, fill_mode: str, size: tf.Tensor, fill_value: Any
) -> tf.Tensor:
    import tensorflow as tf

    x, y, nowhere = _places(transforms, size)
    if fill_mode == "constant":
        padding = "zeros"
        x = tf.where(nowhere, tf.constant(-1e9), x)
    else:
        padding = "border"
        sizes = tf.cast(tf.shape(images), tf.float32)
        x, y = _moved_inside(x, sizes[2], fill_mode), _moved_inside(y, sizes[1], fill_mode)
    if interpolation == "nearest":
        x, y = _rounded(x), _rounded(y)
    points = tf.stack([x, y], axis=-1)
    known = tf.get_static_value(fill_value)
    if fill_mode == "constant" and (known is None or known != 0):
        # A frame of fill values, which reach as far as one looks.
        fill = tf.cast(fill_value, images.dtype)
        images = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=fill)
        points, padding = points + 1.0, "border"
    points = tf.broadcast_to(points, tf.concat([tf.shape(images)[:1], tf.shape(points)[1:]], 0))
    found = sample_pixels(images, points, interpolation, padding)
    if fill_mode != "constant":
        found = tf.where(nowhere[..., tf.newaxis], tf.cast(fill_value, found.dtype), found)
    return found


def _places(transforms: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Where each pixel of the output comes from, x and y, and whether from infinitely far."""
    import tensorflow as tf

    y, x = tf.range(tf.cast(size[0], tf.float32))[:, None], tf.range(tf.cast(size[1], tf.float32))[None, :]
    a0, a1, a2, b0, b1, b2, c0, c1 = (one[:, None, None] for one in tf.unstack(transforms, num=8, axis=1))
    k = c0 * x + c1 * y + 1.0
    nowhere = tf.equal(k, 0.0)
    k = tf.where(nowhere, tf.ones_like(k), k)
    return (a0 * x + a1 * y + a2) / k, (b0 * x + b1 * y + b2) / k, nowhere


def _moved_inside(at: tf.Tensor, size: tf.Tensor, fill_mode: str) -> tf.Tensor:
    """A place on an axis, moved as TensorFlow's own op moves it; what is left outside is clipped by the kernel."""
    import tensorflow as tf

    if fill_mode == "reflect":
        turns = tf.floor((at + 0.5) / tf.maximum(2 * size, 1.0))
        at -= tf.stop_gradient(2 * size * turns)
        at = tf.where(at >= size - 0.5, 2 * size - 1 - at, at)
    elif fill_mode == "wrap":
        step = tf.maximum(size - 1, 1.0)
        left = size * (tf.floor(-at / step) + 1)
        right = -size * tf.floor(at / step)
        at += tf.stop_gradient(tf.where(at < 0, left, tf.where(at > size - 1, right, tf.zeros_like(at))))
    return tf.clip_by_value(at, 0.0, tf.maximum(size - 1, 0.0))


def _rounded(at: tf.Tensor) -> tf.Tensor:
    """Halves go away from 0, as in C. (tf.round takes them to the even number.)"""
    import tensorflow as tf

    whole = tf.floor(at)
    rest = at - whole
    return whole + tf.cast(tf.where(at < 0, rest > 0.5, rest >= 0.5), at.dtype)
