"""Values of pixels: scaling to what a network takes, and jitter of brightness, contrast, saturation and hue."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from tftoolkit.custom_ops.pixels import adjust_brightness, adjust_contrast, adjust_saturation
from tftoolkit.pipelines.image.draws import uniform
from tftoolkit.pipelines.image.feature import channels_of, named, need_dtype, number, picture, pictures
from tftoolkit.pipelines.plan.stage import Vectorized
from tftoolkit.pipelines.sources.source import Example


def normalize(max_value: float) -> Vectorized:
    """Divides the image by ``max_value``, the value that shall become 1: any real dtype -> float32, same shape.

    A stage for ``Pipeline.map``. Use 255 for ordinary 8-bit images, 16 for scikit-learn's digits.

    Raises:
      TypeError, ValueError: ``max_value`` is not a number above 0; the image is missing or not of rank 3.
    """
    if isinstance(max_value, bool) or not isinstance(max_value, int | float):
        raise TypeError(f"max_value: expected a number, got {max_value!r}")
    if not max_value > 0:
        raise ValueError(f"max_value={max_value}: must be above 0")

    def over_rows(batch: Example) -> Example:
        images = tf.cast(pictures("normalize", batch), tf.float32)
        return {**batch, "image": images / tf.constant(max_value, tf.float32)}

    return Vectorized(f"normalize(max_value={max_value})", over_rows)


def standardize(mean: Sequence[float], std: Sequence[float]) -> Vectorized:
    """(image − mean) / std for each channel: any real dtype -> float32, same shape.

    A stage for ``Pipeline.map``.

    Args:
      mean, std: one number per channel, in the units of the image at this stage (0 … 255 before ``normalize(255)``).

    Raises:
      TypeError, ValueError: not as many numbers as channels, a std that is not above 0; the image is missing or not of
        rank 3.
    """
    means, stds = _per_channel("mean", mean), _per_channel("std", std)
    if len(means) != len(stds):
        raise ValueError(f"std: expected {len(means)} numbers as in mean, got {len(stds)}")
    if min(stds) <= 0:
        raise ValueError(f"std={list(stds)}: must be above 0")

    def over_rows(batch: Example) -> Example:
        images = pictures("standardize", batch)
        if images.shape[-1] != len(means):
            raise ValueError(f"standardize: mean has {len(means)} numbers, but 'image' has shape {images.shape[1:]}")
        # Broadcasting over an innermost dimension of 3 is slow: whole lines are combined instead.
        shape = tf.shape(images)
        lines = tf.reshape(tf.cast(images, tf.float32), [shape[0], shape[1], shape[2] * len(means)])
        mean_line, std_line = (tf.tile(tf.constant(value, tf.float32), shape[2:3]) for value in (means, stds))
        return {**batch, "image": tf.ensure_shape(tf.reshape((lines - mean_line) / std_line, shape), images.shape)}

    return Vectorized(f"standardize(mean={list(means)}, std={list(stds)})", over_rows)


def _per_channel(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise TypeError(f"{name}: expected one number per channel, got {values!r}")
    return tuple(float(number(name, value, -float("inf"))) for value in values)


def color_jitter(
    brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
) -> Callable[..., Example]:
    """Changes brightness, contrast, saturation and hue by random amounts, in random order.

    The semantics of torchvision's ``ColorJitter``: the first three blend the picture with black, with the mean of its
    grayscale, and with its grayscale, by a factor uniform in [max(0, 1 − amount), 1 + amount] (1 changes nothing); hue
    is turned by a part of the circle uniform in [−hue, hue]; all orders are equally likely. Values stay within
    [0, 255] (uint8) or [0, 1] (float32). On uint8 each step gives the integers of Pillow's ``ImageEnhance``, except
    hue, which is computed in float32 and rounded. Saturation and hue leave grayscale pictures as they are.

    A stage for ``Pipeline.map``. Shape and dtype (uint8 or float32) are kept.

    Raises:
      TypeError, ValueError: an amount out of range (hue: 0 … 0.5); the image is missing, of another dtype, or has not 1
        or 3 channels.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    for name, amount in amounts.items():
        number(name, amount, 0, 0.5 if name == "hue" else float("inf"))
    active = {name: amount for name, amount in amounts.items() if amount}
    if not active:
        raise ValueError("color_jitter: all amounts are 0, so there is nothing to change")

    def stage(example: Example, key: tf.Tensor) -> Example:
        image = picture("color_jitter", example)
        need_dtype("color_jitter", image, tf.uint8, tf.float32)
        channels_of("color_jitter", image)
        draws = uniform(key[tf.newaxis], 2 * len(active))[0]
        order, parts = tf.argsort(draws[: len(active)]), draws[len(active) :]
        steps = [_jitter_step(name, amount) for name, amount in active.items()]
        shape = image.shape  # of which the loop would lose what is not known

        def change(image: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            branches = [lambda step=step, draw=parts[i]: step(image, draw) for i, step in enumerate(steps)]
            return tf.ensure_shape(tf.switch_case(number, branches), shape)

        return {**example, "image": tf.foldl(change, order, initializer=image)}

    return named(f"color_jitter({', '.join(f'{name}={amount}' for name, amount in active.items())})", stage)


def _jitter_step(name: str, amount: float) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    if name == "hue":
        return lambda image, draw: turn_hue(image, (2 * draw - 1) * amount)
    low, high = max(0.0, 1.0 - amount), 1.0 + amount
    adjust = {"brightness": adjust_brightness, "contrast": adjust_contrast, "saturation": adjust_saturation}[name]
    return lambda image, draw: adjust(image, tf.cast(low + (high - low) * draw, tf.float32))


def turn_hue(image: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
    """Every colour moved by ``delta`` of the colour circle."""
    if image.shape[-1] == 1:
        return tf.identity(image)
    turned = tf.raw_ops.AdjustHue(images=tf.cast(image, tf.float32), delta=tf.cast(delta, tf.float32))
    return tf.cast(tf.round(turned), tf.uint8) if image.dtype == tf.uint8 else turned
