"""Random parameters of pictures, each row's from its own key alone."""

import tensorflow as tf

from tftoolkit.pipelines import keys as counter


def uniform(keys: tf.Tensor, count: int) -> tf.Tensor:
    """``count`` numbers per key, uniform in [0, 1): keys int32[n, 2] -> float64[n, count], multiples of 2**-53."""
    bits = tf.bitwise.right_shift(_hashes(keys, tf.range(count, dtype=tf.int64)), tf.constant(11, tf.uint64))
    return tf.cast(bits, tf.float64) * 2.0**-53


def random_bytes(keys: tf.Tensor, count: tf.Tensor | int) -> tf.Tensor:
    """``count`` bytes per key: keys int32[n, 2] -> uint8[n, count]. Not those behind ``uniform`` of the same keys."""
    # Negative counters are not used by uniform.
    hashes = _hashes(keys, -1 - tf.range((count + 7) // 8, dtype=tf.int64))
    return tf.reshape(tf.bitcast(hashes, tf.uint8), [tf.shape(keys)[0], -1])[:, :count]


def below(draw: tf.Tensor, limit: tf.Tensor | int) -> tf.Tensor:
    """A draw from [0, 1) as int32, uniform in [0, limit)."""
    return tf.cast(draw * tf.cast(limit, tf.float64), tf.int32)


def _hashes(keys: tf.Tensor, counters: tf.Tensor) -> tf.Tensor:
    return counter.fold(tf.bitcast(keys, tf.uint64)[:, tf.newaxis], counters[tf.newaxis, :])
