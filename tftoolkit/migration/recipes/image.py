"""Recipes for ``tfa.image``. Images are [height, width, channels]; a batch has one more dimension before these."""

import tensorflow as tf


def adjust_hsv_in_yiq(image, delta_hue=0.0, scale_saturation=1.0, scale_value=1.0):
    """Floating-point images of three channels; others through tf.image.convert_image_dtype."""
    yiq = tf.constant([[0.299, 0.596, 0.211], [0.587, -0.274, -0.523], [0.114, -0.322, 0.312]])
    back = tf.constant([[1.0, 1.0, 1.0], [0.95617069, -0.2726886, -1.103744], [0.62143257, -0.64681324, 1.70062309]])
    cosine, sine = (scale_value * scale_saturation * f(delta_hue) for f in (tf.cos, tf.sin))
    turn = tf.convert_to_tensor([[scale_value, 0.0, 0.0], [0.0, cosine, sine], [0.0, -sine, cosine]])
    return image @ tf.cast(yiq @ turn @ back, image.dtype)


def random_hsv_in_yiq(
    image, max_delta_hue=0.0, lower_saturation=1.0, upper_saturation=1.0, lower_value=1.0, upper_value=1.0, seed=(0, 0)
):
    low, high = [-max_delta_hue, lower_saturation, lower_value], [max_delta_hue, upper_saturation, upper_value]
    drawn = tf.unstack(low + (tf.constant(high) - low) * tf.random.stateless_uniform([3], seed))
    return adjust_hsv_in_yiq(image, *drawn)


def blend(image1, image2, factor):
    image1, image2 = tf.cast(image1, tf.float32), tf.cast(image2, tf.float32)
    mixed = image1 + factor * (image2 - image1)
    return tf.round(mixed if 0 <= factor <= 1 else tf.clip_by_value(mixed, 0, 255))


def equalize(image):
    """A uint8 image, [height, width, channels]."""

    def one(channel):
        counts = tf.histogram_fixed_width(tf.cast(channel, tf.int32), [0, 255], 256)
        last = tf.boolean_mask(counts, counts > 0)[-1]
        step = (tf.size(channel) - last) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        return tf.where(
            step == 0,
            channel,
            tf.cast(tf.gather(tf.clip_by_value(table, 0, 255), tf.cast(channel, tf.int32)), image.dtype),
        )

    return tf.stack([one(channel) for channel in tf.unstack(image, axis=-1)], -1)


def sharpness(image, factor):
    """A batch of images; 0 is blurred, 1 as it is. The border stays as it is."""
    channels = image.shape[-1]
    kernel = tf.tile(tf.constant([1.0, 1, 1, 1, 5, 1, 1, 1, 1], shape=[3, 3, 1, 1]) / 13, [1, 1, channels, 1])
    blurred = tf.nn.depthwise_conv2d(tf.cast(image, tf.float32), kernel, [1, 1, 1, 1], "VALID")
    edges = [[0, 0], [1, 1], [1, 1], [0, 0]]
    inside = tf.pad(tf.ones_like(blurred, tf.bool), edges)
    blurred = tf.where(inside, tf.pad(tf.cast(blurred, image.dtype), edges), image)
    return tf.cast(blend(blurred, image, factor), image.dtype)


def cutout(images, mask_size, offset, constant_values=0):
    """``mask_size``: (height, width), even; ``offset``: the masks' centres, (y, x) or [batch, 2]."""
    offset = tf.reshape(offset, [-1, 1, 2])
    inside = [
        tf.abs(2 * (tf.range(tf.shape(images)[axis]) - offset[:, :, axis - 1]) + 1) <= mask_size[axis - 1]
        for axis in (1, 2)
    ]
    masked = inside[0][:, :, None, None] & inside[1][:, None, :, None]
    return tf.where(masked, tf.cast(constant_values, images.dtype), images)


def random_cutout(images, mask_size, constant_values=0, seed=(0, 0)):
    """One place per image, wholly inside."""
    half = tf.constant(mask_size) // 2
    room = tf.cast(tf.shape(images)[1:3] - 2 * half, tf.float32)
    drawn = tf.random.stateless_uniform([tf.shape(images)[0], 2], seed) * room
    return cutout(images, mask_size, half + tf.cast(drawn, tf.int32), constant_values)


def interpolate_bilinear(grid, query_points, indexing="ij"):
    """``grid`` [batch, height, width, channels], points [batch, n, 2] in pixels; outside is the border's value."""
    points = query_points if indexing == "ij" else query_points[..., ::-1]
    last = tf.cast(tf.shape(grid)[1:3] - 1, points.dtype)
    points = tf.clip_by_value(points, 0.0, last)
    low = tf.minimum(tf.floor(points), last - 1)
    y, x = tf.split(tf.cast(points - low, grid.dtype), 2, -1)
    low = tf.cast(low, tf.int32)
    corner = {(i, j): tf.gather_nd(grid, low + tf.constant([i, j]), batch_dims=1) for i in (0, 1) for j in (0, 1)}
    top, bottom = (corner[i, 0] + x * (corner[i, 1] - corner[i, 0]) for i in (0, 1))
    return top + y * (bottom - top)


def _padded(image, filter_shape, padding, constant_values):
    (top, left), (rows, columns) = ((size - 1) // 2 for size in filter_shape), filter_shape
    edges = [[0, 0], [top, rows - 1 - top], [left, columns - 1 - left], [0, 0]]
    return tf.pad(image, edges, padding, constant_values)


def mean_filter2d(image, filter_shape=(3, 3), padding="REFLECT", constant_values=0):
    """A batch of floating-point images."""
    return tf.nn.avg_pool2d(_padded(image, filter_shape, padding, constant_values), filter_shape, 1, "VALID")


def gaussian_filter2d(image, filter_shape=(3, 3), sigma=(1.0, 1.0), padding="REFLECT", constant_values=0):
    """A batch of floating-point images."""
    rows, columns = (
        tf.nn.softmax(-tf.square(tf.range(-size // 2 + 1.0, size // 2 + 1.0)) / (2.0 * one**2))
        for size, one in zip(filter_shape, sigma, strict=True)
    )
    kernel = tf.cast(rows[:, None] * columns, image.dtype)[:, :, None, None]
    image = _padded(image, filter_shape, padding, constant_values)
    return tf.nn.depthwise_conv2d(image, tf.tile(kernel, [1, 1, image.shape[-1], 1]), [1, 1, 1, 1], "VALID")


def compose_transforms(transforms):
    """Projective transforms of 8 numbers each, of which the last one is applied to output points first."""
    matrix = tf.eye(3)
    for one in transforms:
        matrix = matrix @ tf.reshape(
            tf.concat([tf.reshape(one, [-1, 8]), tf.ones([tf.size(one) // 8, 1])], 1), [-1, 3, 3]
        )
    flat = tf.reshape(matrix, [-1, 9])
    return (flat / flat[:, 8:])[:, :8]


def angles_to_projective_transforms(angles, image_height, image_width):
    """Radians, counterclockwise."""
    cosine, sine, zero = tf.cos(angles), tf.sin(angles), tf.zeros_like(angles)
    right, down = image_width - 1.0, image_height - 1.0
    x = (right - (cosine * right - sine * down)) / 2
    y = (down - (sine * right + cosine * down)) / 2
    return tf.stack([cosine, -sine, x, sine, cosine, y, zero, zero], -1)


def translations_to_projective_transforms(translations):
    """``translations``: (dx, dy), [..., 2]."""
    dx, dy = tf.unstack(translations, axis=-1)
    one, zero = tf.ones_like(dx), tf.zeros_like(dx)
    return tf.stack([one, zero, -dx, zero, one, -dy, zero, zero], -1)


def _moved(image, transform, replace):
    """One uint8 image; what comes from outside is ``replace``."""
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.concat([image, tf.ones_like(image[..., :1])], -1)[None],
        transforms=tf.constant([transform], tf.float32),
        output_shape=tf.shape(image)[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0]
    return tf.where(moved[..., -1:] == 1, moved[..., :-1], tf.cast(replace, image.dtype))


def shear_x(image, level, replace):
    return _moved(image, [1, level, 0, 0, 1, 0, 0, 0], replace)


def shear_y(image, level, replace):
    return _moved(image, [1, 0, 0, level, 1, 0, 0, 0], replace)


def translate_xy(image, translate_to, replace):
    dx, dy = translate_to
    return _moved(image, [1, 0, -dx, 0, 1, -dy, 0, 0], replace)
