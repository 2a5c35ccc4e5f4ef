"""Recipes for ``tfa.losses``. The classes there are these functions, their means where the page says so."""

import tensorflow as tf


def contrastive_loss(y_true, y_pred, margin=1.0):
    y_true = tf.cast(y_true, y_pred.dtype)
    return y_true * tf.square(y_pred) + (1 - y_true) * tf.square(tf.maximum(margin - y_pred, 0))


def giou_loss(y_true, y_pred, mode="giou"):
    """Boxes are [..., (ymin, xmin, ymax, xmax)]."""

    def area(low, high):
        return tf.reduce_prod(tf.maximum(high - low, 0), -1)

    (low, high), (true_low, true_high) = (tf.split(boxes, 2, -1) for boxes in (y_pred, tf.cast(y_true, y_pred.dtype)))
    common = area(tf.maximum(low, true_low), tf.minimum(high, true_high))
    union = area(low, high) + area(true_low, true_high) - common
    iou = tf.math.divide_no_nan(common, union)
    if mode == "iou":
        return 1 - iou
    around = area(tf.minimum(low, true_low), tf.maximum(high, true_high))
    return 1 - iou + tf.math.divide_no_nan(around - union, around)


def pairwise_distance(embeddings, distance_metric="L2"):
    if distance_metric == "angular":
        embeddings = tf.math.l2_normalize(embeddings, 1)
        return tf.maximum(1 - tf.matmul(embeddings, embeddings, transpose_b=True), 0)
    squares = tf.reduce_sum(tf.square(embeddings[:, None] - embeddings[None]), -1)
    if distance_metric == "squared-L2":
        return squares
    is_zero = tf.equal(squares, 0)  # whose root has no gradient
    return tf.where(is_zero, 0.0, tf.sqrt(tf.where(is_zero, 1.0, squares)))


def _same_label(y_true):
    labels = tf.reshape(y_true, [-1])
    return tf.equal(labels[:, None], labels[None])


def lifted_struct_loss(labels, embeddings, margin=1.0):
    distances, same = pairwise_distance(embeddings), _same_label(labels)
    outside = tf.reduce_logsumexp(tf.where(same, float("-inf"), margin - distances), 1)  # to all negatives of a row
    losses = tf.reduce_logsumexp(tf.stack(tf.meshgrid(outside, outside)), 0) + distances
    positives = tf.linalg.set_diag(tf.cast(same, tf.float32), tf.zeros(tf.shape(same)[:1]))
    return tf.reduce_sum(tf.square(tf.maximum(losses, 0)) * positives) / (2 * tf.reduce_sum(positives))


def triplet_semihard_loss(y_true, y_pred, margin=1.0, distance_metric="L2"):
    distances, same = pairwise_distance(y_pred, distance_metric), _same_label(y_true)
    # For each anchor and positive [a, p]: the nearest negative n that is farther away, else the farthest negative.
    farther = ~same[:, None] & (distances[:, None] > distances[:, :, None])
    outside = tf.reduce_min(tf.where(farther, distances[:, None], float("inf")), -1)
    inside = tf.reduce_max(tf.where(same, 0.0, distances), 1, keepdims=True)
    negatives = tf.where(tf.reduce_any(farther, -1), outside, inside)
    positives = tf.linalg.set_diag(tf.cast(same, tf.float32), tf.zeros(tf.shape(same)[:1]))
    return tf.reduce_sum(tf.maximum(margin + distances - negatives, 0) * positives) / tf.reduce_sum(positives)


def triplet_hard_loss(y_true, y_pred, margin=1.0, soft=False, distance_metric="L2"):
    distances, same = pairwise_distance(y_pred, distance_metric), _same_label(y_true)
    positive = tf.reduce_max(tf.where(same, distances, 0.0), 1)
    negative = tf.reduce_min(tf.where(same, float("inf"), distances), 1)
    losses = tf.nn.softplus(positive - negative) if soft else tf.maximum(positive - negative + margin, 0)
    return tf.reduce_mean(losses)


def npairs_loss(y_true, y_pred):
    same = tf.cast(_same_label(y_true), y_pred.dtype)
    same /= tf.reduce_sum(same, 1, keepdims=True)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(same, y_pred))


def npairs_multilabel_loss(y_true, y_pred):
    """``y_true`` dense: tf.sparse.to_dense(labels)."""
    common = tf.matmul(y_true, y_true, transpose_b=True)
    common = tf.cast(common, y_pred.dtype) / tf.cast(tf.reduce_sum(common, 1, keepdims=True), y_pred.dtype)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(common, y_pred))


def pinball_loss(y_true, y_pred, tau=0.5):
    difference = tf.cast(y_true, y_pred.dtype) - y_pred
    return tf.reduce_mean(tf.maximum(tau * difference, (tau - 1) * difference), -1)


def sparsemax_loss(logits, sparsemax, labels):
    """``sparsemax``: what that activation gives for the logits (the recipe of activations.sparsemax)."""
    labels = tf.cast(labels, logits.dtype)
    chosen = tf.where(sparsemax > 0, sparsemax * (logits - sparsemax / 2), 0.0)
    return tf.reduce_sum(chosen + labels * (labels / 2 - logits), -1)


def weighted_kappa_loss(y_true, y_pred, weightage="quadratic", epsilon=1e-6):
    """One-hot labels and probabilities, both [batch, classes]."""
    y_true, classes = tf.cast(y_true, y_pred.dtype), tf.range(y_pred.shape[1], dtype=y_pred.dtype)
    weights = tf.abs(classes[:, None] - classes) ** {"linear": 1, "quadratic": 2}[weightage]
    observed = tf.reduce_sum(tf.matmul(y_true, weights) * y_pred)
    of_true, of_pred = tf.reduce_sum(y_true, 0), tf.reduce_sum(y_pred, 0)
    expected = tf.einsum("i,ij,j", of_true, weights, of_pred) / tf.cast(tf.shape(y_true)[0], y_pred.dtype)
    return tf.math.log(tf.math.divide_no_nan(observed, expected) + epsilon)
