"""Counter-based randomness: 64-bit hashes of (seed, epoch, stream, example), vectorised over examples.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014). TensorFlow's stateless random ops take one key per call; these take one key per row, so a
whole batch is drawn at once. All arithmetic is modulo 2**64 on tf.uint64 tensors.
"""

import tensorflow as tf

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def _u64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)


def mix(bits: tf.Tensor) -> tf.Tensor:
    """A bijection of tf.uint64 values, any shape, whose every output bit depends on every input bit."""
    xor, shift = tf.bitwise.bitwise_xor, tf.bitwise.right_shift
    bits = xor(bits, shift(bits, _u64(30))) * _u64(0xBF58476D1CE4E5B9)
    bits = xor(bits, shift(bits, _u64(27))) * _u64(0x94D049BB133111EB)
    return xor(bits, shift(bits, _u64(31)))


def fold(state: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """The hash ``state`` (uint64) continued with ``value`` (integer); shapes broadcast.

    For one state, different values give different results.
    """
    return mix(state + (tf.cast(value, tf.uint64) + _u64(1)) * _u64(_GOLDEN_GAMMA))


def stream_state(seed: int, epoch: tf.Tensor, stream: int) -> tf.Tensor:
    """Hash state (uint64, shape of ``epoch``) of one random stream; stream 0 is the order, 1, 2, … the map stages."""
    return fold(fold(mix(_u64(seed)), epoch), tf.constant(stream, tf.uint64))


def example_keys(state: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """One stateless seed per example: indices int64[n] -> int32[n, 2], all different."""
    return tf.bitcast(fold(state, indices), tf.int32)


def uniform_int(keys: tf.Tensor, count: int, limit: int) -> tf.Tensor:
    """``count`` integers per key, uniform in [0, limit): keys int32[n, 2] -> int32[n, count].

    Each row depends on its own key only. 31 random bits modulo ``limit``: no value is more than limit / 2**31 likelier
    than another.
    """
    counters = tf.range(count, dtype=tf.int64)[tf.newaxis, :]
    bits = fold(tf.bitcast(keys, tf.uint64)[:, tf.newaxis], counters)
    return tf.cast(tf.bitwise.right_shift(bits, _u64(33)) % _u64(limit), tf.int32)
