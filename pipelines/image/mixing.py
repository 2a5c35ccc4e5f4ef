"""Stages that mix each picture, and its label, with another one of the batch: mixup and CutMix."""

import tensorflow as tf

from tftoolkit.custom_ops.pixels import height_width
from tftoolkit.pipelines.image.boxes import paste
from tftoolkit.pipelines.image.draws import below, uniform
from tftoolkit.pipelines.image.feature import integer, number, pictures
from tftoolkit.pipelines.plan.stage import Paired
from tftoolkit.pipelines.sources.source import Example


def mixup(num_classes: int, alpha: float = 0.2) -> Paired:
    """share × picture + (1 − share) × next picture of the batch, and the same of the labels (Zhang et al., 2018).

    The share is drawn for each row from Beta(alpha, alpha). "image" becomes float32; "label" (class numbers, or shares
    of classes float32[num_classes] after an earlier mix) becomes float32[num_classes]. Other features stay.

    A stage for ``Pipeline.map``, right after ``batch``.

    Raises:
      TypeError, ValueError: ``num_classes`` below 1, ``alpha`` not above 0; "image" is missing or not of rank 3; the
        label is missing or neither.
      While reading, ``tf.errors.InvalidArgumentError``: a class number is not below ``num_classes``.
    """
    _check(num_classes, alpha)

    def over_rows(rows: Example, partners: Example, keys: tf.Tensor) -> Example:
        shares = beta_draws(keys, alpha)
        images, others = (tf.cast(pictures("mixup", part), tf.float32) for part in (rows, partners))
        share = tf.cast(shares, tf.float32)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        labels = _mixed_labels("mixup", rows, partners, shares, num_classes)
        return {**rows, "image": share * images + (1.0 - share) * others, "label": labels}

    return Paired(f"mixup(num_classes={num_classes}, alpha={alpha})", over_rows)


def cutmix(num_classes: int, alpha: float = 1.0) -> Paired:
    """Puts a rectangle of the next picture of the batch into each, and mixes the labels by area (Yun et al., 2019).

    The rectangle's share of the area is 1 − a draw from Beta(alpha, alpha), its aspect ratio that of the picture, its
    middle uniform over the picture; the label's share is that of the area that was really replaced, as the rectangle
    may reach beyond the border. "image" keeps its dtype; "label" as in ``mixup``.

    A stage for ``Pipeline.map``, right after ``batch``.

    Args:
      num_classes: labels become float32[num_classes].
      alpha: above 0; 1 makes every share as likely.

    Raises:
      TypeError, ValueError: as of ``mixup``.
    """
    _check(num_classes, alpha)

    def over_rows(rows: Example, partners: Example, keys: tf.Tensor) -> Example:
        images, others = pictures("cutmix", rows), pictures("cutmix", partners)
        height, width = height_width(images)
        boxes = cut_boxes(1.0 - beta_draws(keys, alpha), uniform(keys, 2), height, width)
        replaced = tf.cast(boxes[:, 2] * boxes[:, 3], tf.float64) / tf.cast(height * width, tf.float64)
        labels = _mixed_labels("cutmix", rows, partners, 1.0 - replaced, num_classes)
        return {**rows, "image": paste(boxes, others, images), "label": labels}

    return Paired(f"cutmix(num_classes={num_classes}, alpha={alpha})", over_rows)


def cut_boxes(areas: tf.Tensor, places: tf.Tensor, height: tf.Tensor | int, width: tf.Tensor | int) -> tf.Tensor:
    """int32[n, 4]: top, left, height, width within the picture, from shares of the area [n] and middles [n, 2]."""
    edges = []
    for axis, size in enumerate((height, width)):
        length = tf.cast(tf.cast(size, tf.float64) * tf.sqrt(areas), tf.int32)
        start = below(places[:, axis], size) - length // 2
        low, high = tf.maximum(start, 0), tf.minimum(start + length, size)
        edges.append((low, high - low))
    (top, rows), (left, columns) = edges
    return tf.stack([top, left, rows, columns], axis=1)


def beta_draws(keys: tf.Tensor, alpha: float) -> tf.Tensor:
    """One draw from Beta(alpha, alpha) per key, float64[n], as a ratio of gamma-distributed numbers."""

    def draw(key: tf.Tensor) -> tf.Tensor:
        pair = tf.random.stateless_gamma([2], key, alpha, dtype=tf.float64)
        # A small alpha makes numbers below the smallest float64: where both are 0, one class takes all.
        total = pair[0] + pair[1]
        return tf.math.divide_no_nan(pair[0], total)

    return tf.map_fn(draw, keys, fn_output_signature=tf.TensorSpec([], tf.float64))


def _check(num_classes: int, alpha: float) -> None:
    integer("num_classes", num_classes, 1)
    if number("alpha", alpha, 0) == 0:
        raise ValueError("alpha=0: must be above 0; to mix nothing, leave the stage out")


def _mixed_labels(stage: str, rows: Example, partners: Example, shares: tf.Tensor, num_classes: int) -> tf.Tensor:
    own, other = (_class_shares(stage, part, num_classes) for part in (rows, partners))
    share = tf.cast(shares, tf.float32)[:, tf.newaxis]
    return share * own + (1.0 - share) * other


def _class_shares(stage: str, rows: Example, num_classes: int) -> tf.Tensor:
    if "label" not in rows:
        raise ValueError(f"{stage}: the example has no feature 'label', only {sorted(rows)}")
    labels = tf.convert_to_tensor(rows["label"])
    if labels.dtype.is_integer and labels.shape.rank == 1:
        inside = tf.reduce_all((labels >= 0) & (tf.cast(labels, tf.int64) < num_classes))
        message = f"{stage}: 'label' must be a class number from 0 to {num_classes - 1}, got"
        check = tf.debugging.Assert(inside, [message, labels])
        with tf.control_dependencies([] if check is None else [check]):  # None when called eagerly
            return tf.one_hot(labels, num_classes, dtype=tf.float32)
    if labels.dtype == tf.float32 and labels.shape.rank == 2 and labels.shape[1] == num_classes:
        return labels
    raise ValueError(
        f"{stage}: 'label' must be a class number (an integer), or shares of {num_classes} classes (float32), "
        f"got {labels.dtype.name} of shape {labels.shape[1:]}"
    )
