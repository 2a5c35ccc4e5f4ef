"""RandAugment (Cubuk et al., 2020)."""

import functools
from collections.abc import Callable

import tensorflow as tf
from absl import logging

from tftoolkit.custom_ops.engine.errors import BuildError, LoadError
from tftoolkit.custom_ops.pixels import CHANGES, MAX_MAGNITUDE, in_tensorflow
from tftoolkit.pipelines.image.draws import below, uniform
from tftoolkit.pipelines.image.feature import channels_of, integer, named, need_dtype, picture
from tftoolkit.pipelines.sources.source import Example


def rand_augment(num_ops: int = 2, magnitude: int = 9) -> Callable[..., Example]:
    """Applies ``num_ops`` of 14 changes, drawn uniformly and with replacement, all with one magnitude.

    The ranges are those of AutoAugment (Cubuk et al., 2019, table 6) on a scale of 0 … 30, where 0 changes nothing
    except by auto-contrast, equalize (which have no magnitude) and 30 is the end of the range, as in torchvision::

        identity, auto-contrast, equalize
        shear x, shear y          ±0.3 × magnitude / 30
        translate x, translate y  ±150 / 331 of the width or height × magnitude / 30, in whole pixels
        rotate                    ±30° × magnitude / 30
        brightness, color, contrast, sharpness   factor 1 ± 0.9 × magnitude / 30
        posterize                 8 − round(4 × magnitude / 30) bits
        solarize                  from 256 × (1 − magnitude / 30) on

    Signs are drawn as well. What moves in at the borders is gray (128), nearest pixels are taken. All but the affine
    changes give the integers of Pillow. (In the authors' code solarize and posterize grow weaker with
    the magnitude, and small magnitudes make pictures dark; as in torchvision, that is not so here.)

    A stage for ``Pipeline.map``; put it before ``normalize``. Shape and dtype are kept. It is compiled on first use
    (``custom_ops.rand_augment``); where that can't be done TensorFlow operations give the same pictures, more slowly.

    Raises:
      TypeError, ValueError: ``num_ops`` below 1, ``magnitude`` not an integer 0 … 30; the image is missing, not uint8,
        or has not 1 or 3 channels.
    """
    integer("num_ops", num_ops, 1)
    integer("magnitude", magnitude, 0, MAX_MAGNITUDE)
    augment = operation()

    def stage(example: Example, key: tf.Tensor) -> Example:
        image = picture("rand_augment", example)
        need_dtype("rand_augment", image, tf.uint8)
        channels_of("rand_augment", image)
        draws = tf.reshape(uniform(key[tf.newaxis], 2 * num_ops), [num_ops, 2])
        numbers, negative = below(draws[:, 0], len(CHANGES)), draws[:, 1] < 0.5
        return {**example, "image": augment(image, numbers, negative, magnitude)}

    return named(f"rand_augment(num_ops={num_ops}, magnitude={magnitude})", stage)


@functools.cache
def operation() -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor, int], tf.Tensor]:
    """``custom_ops.rand_augment``, or where it can't be compiled what stands in for it."""
    try:
        from tftoolkit.custom_ops import rand_augment
    except (BuildError, LoadError) as error:
        reason = error.plain.partition("\n")[0]
        logging.warning("tftoolkit: RandAugment runs in TensorFlow operations, which is much slower: %s", reason)
        return in_tensorflow
    return rand_augment
