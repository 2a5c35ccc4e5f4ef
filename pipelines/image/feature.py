"""What all image stages share: the feature "image" of an example, checked, and parameters, checked."""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tftoolkit.pipelines.sources.source import Example


def pictures(stage: str, rows: Example) -> tf.Tensor:
    """The pictures [n, height, width, channels] of a batch of rows."""
    return _decoded(stage, rows, 1)


def picture(stage: str, example: Example) -> tf.Tensor:
    """The picture [height, width, channels] of one example."""
    return _decoded(stage, example, 0)


def entry(stage: str, example: Example) -> tf.Tensor:
    """The feature "image", whatever it holds."""
    if "image" not in example:
        raise ValueError(f"{stage}: the example has no feature 'image', only {sorted(example)}")
    return tf.convert_to_tensor(example["image"])


def _decoded(stage: str, example: Example, leading: int) -> tf.Tensor:
    image = entry(stage, example)
    if image.dtype == tf.string:
        raise ValueError(f"{stage}: 'image' is an encoded file; put image.decode() before this stage")
    if image.shape.rank != 3 + leading:
        raise ValueError(f"{stage}: 'image' must have shape [height, width, channels], got {image.shape[leading:]}")
    return image


def channels_of(stage: str, image: tf.Tensor) -> int:
    """1 or 3; anything else is refused."""
    channels = image.shape[-1]
    if channels not in (1, 3):
        raise ValueError(f"{stage}: 'image' must have 1 or 3 channels, got shape {image.shape}")
    return int(channels)


def need_dtype(stage: str, image: tf.Tensor, *dtypes: tf.DType) -> None:
    if image.dtype not in dtypes:
        wanted = " or ".join(dtype.name for dtype in dtypes)
        raise TypeError(f"{stage}: 'image' must be {wanted}, got {image.dtype.name}; put this stage before normalize")


def named(name: str, function: Callable[..., Example]) -> Callable[..., Example]:
    """``function`` under the name that stands in states. It has no Python control flow over tensors to convert."""
    function = tf.autograph.experimental.do_not_convert(function)
    function.__name__ = name
    return function


def number(name: str, value: float, low: float, high: float = float("inf")) -> float:
    """``value`` if it is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (low <= value <= high and math.isfinite(value)):
        bounds = "a finite number" if high == math.inf else f"between {low} and {high}"
        raise ValueError(
            f"{name}={value}: must be {bounds}" + (f", at least {low}" if -math.inf < low and high == math.inf else "")
        )
    return value


def integer(name: str, value: int, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name}={value}: must be {bounds}")
    return value


def interval(name: str, value: Sequence[float], low: float, high: float = float("inf")) -> tuple[float, float]:
    """``value`` as (smallest, largest), both above ``low`` and at most ``high``."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name}: expected (smallest, largest), got {value!r}")
    smallest, largest = (number(name, one, low, high) for one in value)
    if not low < smallest <= largest:
        raise ValueError(f"{name}={value!r}: smallest must be above {low} and not above largest")
    return smallest, largest
