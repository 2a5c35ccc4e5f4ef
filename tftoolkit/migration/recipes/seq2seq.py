"""Recipes for ``tfa.seq2seq``."""

import numpy as np
import tensorflow as tf


def hardmax(logits):
    return tf.one_hot(tf.argmax(logits, -1), logits.shape[-1], dtype=logits.dtype)


def safe_cumprod(x, **options):
    """``options``: axis, exclusive, reverse."""
    return tf.exp(tf.cumsum(tf.math.log(tf.clip_by_value(x, np.finfo(x.dtype.as_numpy_dtype).tiny, 1)), **options))


def monotonic_attention(p_choose_i, previous_attention, mode):
    if mode == "hard":
        chosen = p_choose_i * tf.cumsum(previous_attention, 1)
        return chosen * tf.math.cumprod(1 - chosen, 1, exclusive=True)
    if mode == "recursive":  # exact, one step after the other
        passed = tf.pad(1 - p_choose_i[:, :-1], [[0, 0], [1, 0]], constant_values=1.0)
        steps = tf.transpose(passed), tf.transpose(previous_attention)
        sums = tf.scan(lambda q, step: step[0] * q + step[1], steps, tf.zeros_like(p_choose_i[:, 0]))
        return p_choose_i * tf.transpose(sums)
    passed = safe_cumprod(1 - p_choose_i, axis=1, exclusive=True)
    return p_choose_i * passed * tf.cumsum(previous_attention / tf.clip_by_value(passed, 1e-10, 1.0), 1)


def gather_tree(step_ids, parent_ids, max_sequence_lengths, end_token):
    """[time, batch, beams] -> the ids along each beam's ancestors; behind the first end token, end tokens."""
    time, beams = step_ids.shape[0], tf.range(step_ids.shape[2])[None]
    beam, found = tf.repeat(beams, step_ids.shape[1], 0), []
    for t in reversed(range(time)):
        inside = (t < max_sequence_lengths)[:, None]
        found.append(tf.where(inside, tf.gather(step_ids[t], beam, batch_dims=1), end_token))
        beam = tf.where(inside, tf.gather(parent_ids[t], beam, batch_dims=1), beam)
    ids = tf.stack(found[::-1])
    return tf.where(tf.cumsum(tf.cast(ids == end_token, tf.int32), 0, exclusive=True) > 0, end_token, ids)


def sequence_loss(logits, targets, weights):
    """Averaged across timesteps and batch. SequenceLoss's default divides by tf.math.count_nonzero(weights) instead."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits) * weights
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(weights))


def decode(step, state, start_tokens, end_token, maximum_iterations, choose=lambda logits: tf.argmax(logits, -1)):
    """The loop of dynamic_decode and BasicDecoder with a cell.

    ``step(tokens, state)`` gives logits [batch, classes] and the next state; ``choose`` is what samplers did. Returns
    tokens [batch, maximum_iterations], end tokens behind the first one.
    """
    tokens, finished, found = start_tokens, tf.zeros_like(start_tokens, tf.bool), []
    for _ in range(maximum_iterations):  # or tf.while_loop
        logits, state = step(tokens, state)
        tokens = tf.where(finished, end_token, tf.cast(choose(logits), start_tokens.dtype))
        finished |= tokens == end_token
        found.append(tokens)
    return tf.stack(found, 1)


def beam_search(step, state, start_tokens, end_token, maximum_iterations, beam_width, length_penalty_weight=0.0):
    """BeamSearchDecoder: ``step`` as for ``decode``; a state's tensors are [batch * beam_width, ...] in it.

    Returns tokens [batch, beam_width, maximum_iterations], best first, and their scores, [batch, beam_width].
    """
    batch = start_tokens.shape[0]
    state = tf.nest.map_structure(lambda x: tf.repeat(x, beam_width, 0), state)
    tokens = tf.repeat(start_tokens[:, None], beam_width, 1)
    sums = tf.repeat(tf.constant([[0.0] + [float("-inf")] * (beam_width - 1)]), batch, 0)
    finished, lengths = tf.zeros_like(tokens, tf.bool), tf.zeros_like(sums)
    found = tf.zeros([batch, beam_width, 0], tokens.dtype)
    for _ in range(maximum_iterations):
        logits, state = step(tf.reshape(tokens, [-1]), state)
        classes = logits.shape[-1]
        log_probs = tf.reshape(tf.nn.log_softmax(logits), [batch, beam_width, classes])
        only_end = tf.where(tf.range(classes) == end_token, 0.0, log_probs.dtype.min)
        totals = sums[:, :, None] + tf.where(finished[:, :, None], only_end, log_probs)
        grows = tf.cast(~finished[:, :, None] & (tf.range(classes) != end_token), tf.float32)
        penalty = ((5.0 + lengths[:, :, None] + grows) / 6.0) ** length_penalty_weight
        scores, places = tf.math.top_k(tf.reshape(totals / penalty, [batch, -1]), beam_width)
        parents, tokens = places // classes, tf.cast(places % classes, tokens.dtype)
        sums = tf.gather(tf.reshape(totals, [batch, -1]), places, batch_dims=1)
        found, finished, lengths = (tf.gather(x, parents, batch_dims=1) for x in (found, finished, lengths))
        flat = tf.reshape(parents + beam_width * tf.range(batch)[:, None], [-1])
        state = tf.nest.map_structure(lambda x, flat=flat: tf.gather(x, flat), state)
        lengths += tf.cast(~finished, tf.float32)
        finished |= tokens == end_token
        found = tf.concat([found, tokens[:, :, None]], 2)
    return found, scores


def scheduled_sampling(targets, logits, sampling_probability, seed):
    """The next inputs [batch]: the target, or with some probability a sample; embed them afterwards."""
    one, other = tf.unstack(tf.random.split(seed, 2))
    sampled = tf.random.stateless_categorical(logits, 1, one, targets.dtype)[:, 0]
    return tf.where(tf.random.stateless_uniform(tf.shape(targets), other) < sampling_probability, sampled, targets)
