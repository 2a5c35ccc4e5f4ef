"""Recipes for ``tfa.text``."""

import datetime

import tensorflow as tf


def crf_filtered_inputs(inputs, tag_bitmap):
    return tf.where(tag_bitmap, inputs, float("-inf"))


def crf_unary_score(tag_indices, sequence_lengths, inputs):
    scores = tf.gather(inputs, tag_indices, batch_dims=2)
    return tf.reduce_sum(scores * tf.sequence_mask(sequence_lengths, inputs.shape[1], inputs.dtype), 1)


def crf_binary_score(tag_indices, sequence_lengths, transition_params):
    scores = tf.gather_nd(transition_params, tf.stack([tag_indices[:, :-1], tag_indices[:, 1:]], -1))
    inside = tf.sequence_mask(sequence_lengths, tag_indices.shape[1], scores.dtype)[:, 1:]
    return tf.reduce_sum(scores * inside, 1)


def crf_sequence_score(inputs, tag_indices, sequence_lengths, transition_params):
    unary = crf_unary_score(tag_indices, sequence_lengths, inputs)
    return unary + crf_binary_score(tag_indices, sequence_lengths, transition_params)


def crf_forward(inputs, state, transition_params, sequence_lengths):
    """``inputs`` from the second place on, ``state`` the first; what crf_log_norm takes the logarithm of."""

    def step(alpha, x):
        return x + tf.reduce_logsumexp(alpha[:, :, None] + transition_params, 1)

    later = tf.transpose(tf.scan(step, tf.transpose(inputs, [1, 0, 2]), state), [1, 0, 2])
    return tf.gather(tf.concat([state[:, None], later], 1), tf.maximum(sequence_lengths - 1, 0), batch_dims=1)


def crf_log_norm(inputs, sequence_lengths, transition_params):
    alphas = crf_forward(inputs[:, 1:], inputs[:, 0], transition_params, sequence_lengths)
    return tf.where(sequence_lengths > 0, tf.reduce_logsumexp(alphas, 1), 0.0)


def crf_multitag_sequence_score(inputs, tag_bitmap, sequence_lengths, transition_params):
    return crf_log_norm(crf_filtered_inputs(inputs, tag_bitmap), sequence_lengths, transition_params)


def parse_time(time_string, time_format, output_unit="SECOND"):
    """Of one str, in Python; for tensors of strings by tf.numpy_function."""
    unset = datetime.datetime.strptime(time_string, time_format)
    time = unset.replace(year=1970 if unset.year == 1900 else unset.year)
    time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    micros = (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    scale = {"SECOND": 1e-6, "MILLISECOND": 1e-3, "MICROSECOND": 1, "NANOSECOND": 1000}[output_unit]
    return int(micros * scale) if scale >= 1 else micros // round(1 / scale)


def skip_gram_sample(tokens, min_skips=1, max_skips=5, seed=(0, 0)):
    """All pairs (token, label) of a 1-D tensor, each token with a window of its own; without subsampling."""
    count = tf.size(tokens)
    reach = tf.random.stateless_uniform([count], seed, min_skips, max_skips + 1, tf.int32)
    distance = tf.abs(tf.range(count) - tf.range(count)[:, None])
    pairs = tf.where((distance > 0) & (distance <= reach[:, None]))
    return tf.gather(tokens, pairs[:, 0]), tf.gather(tokens, pairs[:, 1])
