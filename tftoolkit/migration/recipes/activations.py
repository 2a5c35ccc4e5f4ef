"""Recipes for ``tfa.activations``, and for the layers of these names."""

import tensorflow as tf


def lisht(x):
    return x * tf.tanh(x)


def rrelu(x, lower=0.125, upper=1 / 3, training=False, seed=(0, 0)):
    if not training:
        return tf.where(x >= 0, x, x * (lower + upper) / 2)
    slopes = tf.random.stateless_uniform(tf.shape(x), seed, lower, upper, x.dtype)  # a new seed for each step
    return tf.where(x >= 0, x, x * slopes)


def sparsemax(logits, axis=-1):
    """Martins & Astudillo 2016. (keras.activations.sparsemax of Keras 3.15 gives rows that don't add up to 1.)"""
    z = tf.experimental.numpy.moveaxis(logits, axis, -1)
    ordered = tf.sort(z, direction="DESCENDING")
    ranks = tf.range(1, tf.shape(z)[-1] + 1)
    inside = 1 + tf.cast(ranks, z.dtype) * ordered > tf.cumsum(ordered, -1)
    count = tf.reduce_sum(tf.cast(inside, z.dtype), -1, keepdims=True)
    threshold = (tf.reduce_sum(tf.where(inside, ordered, 0.0), -1, keepdims=True) - 1) / count
    return tf.experimental.numpy.moveaxis(tf.maximum(z - threshold, 0), -1, axis)


def snake(x, frequency=1.0):
    return x + tf.square(tf.sin(frequency * x)) / frequency
