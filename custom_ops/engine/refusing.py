"""What references do with whole numbers that kernels refuse: they can't, on a device, so results are NaN."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


def fitting(numbers: Any, most: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Numbers as they may be, from 0 to ``most``, and which ones were not.

    With others ``tf.gather`` gives zeros on a GPU, which look like any result.
    """
    numbers = tf.convert_to_tensor(numbers)
    found = tf.clip_by_value(numbers, 0, tf.maximum(tf.cast(most, numbers.dtype), 0))
    return found, found != numbers


def spoilt(x: tf.Tensor, bad: tf.Tensor) -> tf.Tensor:
    """NaN where ``bad``, of x's first dimensions."""
    rank = x.shape.rank - bad.shape.rank
    bad = tf.reshape(bad, tf.concat([tf.shape(bad), tf.ones(rank, tf.int32)], 0))
    return tf.where(bad, tf.constant(math.nan, x.dtype), x)
