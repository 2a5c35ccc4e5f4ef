"""Recipes for ``tfa.metrics``. What there grows from batch to batch is here computed from sums over all batches."""

import numpy as np
import tensorflow as tf


def cohen_kappa(confusion, weightage=None):
    """``confusion``: the sum over all batches of tf.math.confusion_matrix(classes, predicted_classes, num_classes)."""
    confusion, classes = np.asarray(confusion, np.float64), np.arange(len(confusion))
    distance = np.abs(classes[:, None] - classes)
    weights = {None: distance > 0, "linear": distance, "quadratic": distance**2}[weightage]
    expected = np.outer(confusion.sum(1), confusion.sum(0)) / confusion.sum()
    return 1 - (confusion * weights).sum() / (expected * weights).sum()


def matthews_correlation_coefficient(confusion):
    """``confusion``: as for cohen_kappa."""
    confusion = np.asarray(confusion, np.float64)
    true, predicted, count = confusion.sum(1), confusion.sum(0), confusion.sum()
    both = np.sqrt((count**2 - true @ true) * (count**2 - predicted @ predicted))
    return (np.trace(confusion) * count - true @ predicted) / both if both else 0.0


def multi_label_confusion_matrix(y_true, y_pred):
    """Of labels of 0 and 1, [batch, classes]: [classes, 2, 2], to be added up over all batches."""
    true, predicted = tf.cast(y_true, tf.int32), tf.cast(y_pred, tf.int32)
    cells = 2 * true + predicted  # 0: true negative, 1: false positive, 2: false negative, 3: true positive
    return tf.reshape(tf.reduce_sum(tf.one_hot(cells, 4), 0), [-1, 2, 2])


def hamming_distance(actuals, predictions):
    return tf.reduce_mean(tf.cast(tf.not_equal(actuals, predictions), tf.float32))


def hamming_loss_fn(y_true, y_pred, threshold=None, mode="multilabel"):
    """Per example; its mean over all examples is HammingLoss."""
    largest = tf.reduce_max(y_pred, -1, keepdims=True)
    chosen = y_pred > threshold if threshold is not None else (y_pred >= largest) & (tf.abs(y_pred) > 1e-12)
    true = tf.cast(y_true, tf.bool)
    if mode == "multiclass":
        return 1.0 - tf.reduce_sum(tf.cast(true & chosen, tf.float32), -1)
    return tf.reduce_mean(tf.cast(true ^ chosen, tf.float32), -1)


def geometric_mean(values, sample_weight=1.0):
    weights = np.broadcast_to(np.asarray(sample_weight, np.float64), np.shape(values))
    return np.exp(np.average(np.log(values), weights=weights))


def harmonic_mean(values, sample_weight=1.0):
    weights = np.broadcast_to(np.asarray(sample_weight, np.float64), np.shape(values))
    return 1 / np.average(1 / np.asarray(values), weights=weights)


def kendalls_tau_b(y_true, y_pred):
    """Of all values at once and exact."""
    import scipy.stats

    return scipy.stats.kendalltau(y_true, y_pred, variant="b").statistic


def kendalls_tau_c(y_true, y_pred):
    """Of all values at once and exact."""
    import scipy.stats

    return scipy.stats.kendalltau(y_true, y_pred, variant="c").statistic


def spearmans_rank(y_true, y_pred):
    """Of all values at once and exact."""
    import scipy.stats

    return scipy.stats.spearmanr(y_true, y_pred).statistic
