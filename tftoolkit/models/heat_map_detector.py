"""A detector that marks the middles of things (Zhou et al. 2019, Objects as Points, https://arxiv.org/abs/1904.07850)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops import batched_nms


class Detections(NamedTuple):
    """Per picture up to ``max_output`` things, by falling score; behind them zeros, and label -1."""

    boxes: tf.Tensor
    """float32 [batch, max_output, 4]: x1, y1, x2, y2 in pixels."""
    labels: tf.Tensor
    """int32 [batch, max_output]."""
    scores: tf.Tensor
    """float32 [batch, max_output], from 0 to 1."""


class HeatMapDetector(tf.Module):
    """Four convolutions, and for each cell of 4×4 pixels the classes whose middle lies there, and that one's box.

    Args:
      classes: how many.
      channels: inputs' channels.
      width: outputs of the last convolutions; the first two have a quarter and a half of them.
      typical_size: of a thing, in pixels: what boxes are at first.
      seed: decides the first weights.
    """

    STRIDE = 4
    """Pixels between two cells of the outputs."""

    def __init__(
        self, classes: int, *, channels: int = 1, width: int = 64, typical_size: float = 20.0, seed: int = 0
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        widths = [channels, width // 4, width // 2, width, width]
        self.kernels = [_kernel(rng, 3, rows, columns) for rows, columns in itertools.pairwise(widths)]
        self.biases = [tf.Variable(tf.zeros(columns)) for columns in widths[1:]]
        self.heat_kernel = tf.Variable(0.01 * rng.standard_normal([1, 1, width, classes]), dtype=tf.float32)
        # At first a class is thought to be in one cell of a hundred (Lin et al. 2017, Focal Loss, section 3.3).
        self.heat_bias = tf.Variable(tf.fill([classes], float(-np.log(99.0))))
        self.box_kernel = tf.Variable(0.01 * rng.standard_normal([1, 1, width, 4]), dtype=tf.float32)
        self.box_bias = tf.Variable(tf.fill([4], float(np.log(typical_size / 2))))

    def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """float32 [batch, height, width, channels], sizes that are multiples of 4.

        Returns:
          The heat's logits [batch, height / 4, width / 4, classes], and boxes [batch, height / 4, width / 4, 4] in
          pixels, if the middle lies in the cell.
        """
        x = images
        for kernel, bias, stride in zip(self.kernels, self.biases, (2, 2, 1, 1), strict=True):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, strides=stride, padding="SAME") + bias)
        heat = tf.nn.conv2d(x, self.heat_kernel, strides=1, padding="SAME") + self.heat_bias
        sides = tf.exp(tf.nn.conv2d(x, self.box_kernel, strides=1, padding="SAME") + self.box_bias)
        middles = self._middles(tf.shape(heat)[1], tf.shape(heat)[2])
        return heat, tf.concat([middles - sides[..., :2], middles + sides[..., 2:]], axis=-1)

    def _middles(self, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """[rows, columns, 2]: x, y of each cell's middle in pixels."""
        y, x = ((tf.range(count, dtype=tf.float32) + 0.5) * self.STRIDE for count in (rows, columns))
        return tf.stack(tf.meshgrid(x, y), axis=-1)


def detections(
    heat: tf.Tensor, boxes: tf.Tensor, *, max_output: int = 20, candidates: int = 60, iou_threshold: float = 0.5
) -> Detections:
    """The things that a :class:`HeatMapDetector` sees: its highest cells, without those that overlap a higher one.

    Args:
      heat, boxes: what the detector returns: [batch, rows, columns, classes] and [batch, rows, columns, 4].
      max_output: most things in a picture; shorter lists end in boxes of 0, labels of -1 and scores of 0.
      candidates: how many of the highest cells are looked at.
      iou_threshold: a box that overlaps a higher one of its class by more is left out.
    Raises ValueError where ``iou_threshold`` or ``max_output`` is out of range.
    """
    batch, classes = tf.shape(heat)[0], heat.shape[-1]
    scores, places = tf.math.top_k(tf.reshape(tf.sigmoid(heat), [batch, -1]), candidates)
    boxes = tf.gather(tf.reshape(boxes, [batch, -1, 4]), places // classes, batch_dims=1)
    labels = places % classes
    kept = batched_nms(boxes, scores, labels, iou_threshold=iou_threshold, max_output=max_output).indices
    is_there = kept >= 0
    chosen = tf.maximum(kept, 0)
    found = [tf.gather(values, chosen, batch_dims=1) for values in (boxes, labels, scores)]
    return Detections(
        tf.where(is_there[..., tf.newaxis], found[0], 0.0),
        tf.where(is_there, found[1], -1),
        tf.where(is_there, found[2], 0.0),
    )


def detection_losses(heat: tf.Tensor, boxes: tf.Tensor, true_boxes: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """One loss per picture: the focal loss of the heat and the boxes' loss, both over the number of things: [batch].

    Around each middle the heat shall fall off as a Gaussian (section 3 of the paper, alpha 2, beta 4). Of the boxes
    those of the cells with middles count: 1 - GIoU (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630).

    Args:
      heat, boxes: what the detector returns.
      true_boxes: float32 [batch, n, 4], x1, y1, x2, y2 in pixels.
      labels: int [batch, n]; -1 where there is no thing.
    """
    is_there = tf.cast(labels >= 0, tf.float32)
    count = tf.maximum(tf.reduce_sum(is_there, axis=-1), 1.0)
    rows, columns, classes = heat.shape[1:]
    middles = (true_boxes[..., :2] + true_boxes[..., 2:]) / (2 * HeatMapDetector.STRIDE)
    cells = tf.clip_by_value(tf.cast(middles, tf.int32), 0, [columns - 1, rows - 1])
    wanted = _gaussians(cells, (true_boxes[..., 2:] - true_boxes[..., :2]) / HeatMapDetector.STRIDE, rows, columns)
    one_hot = tf.one_hot(labels, classes)  # nothing for -1
    target = tf.reduce_max(wanted[..., tf.newaxis] * one_hot[:, :, tf.newaxis, tf.newaxis], axis=1)
    chance = tf.sigmoid(heat)
    hit = (1 - chance) ** 2 * tf.nn.softplus(-heat)
    miss = (1 - target) ** 4 * chance**2 * tf.nn.softplus(heat)
    focal = tf.reduce_sum(tf.where(target == 1.0, hit, miss), axis=[1, 2, 3])
    here = tf.gather_nd(boxes, cells[..., ::-1], batch_dims=1)
    return (focal + tf.reduce_sum(is_there * (1 - _giou(here, true_boxes)), axis=-1)) / count


def _gaussians(cells: tf.Tensor, sizes: tf.Tensor, rows: int, columns: int) -> tf.Tensor:
    """One for each thing, 1 in its cell, as wide as a sixth of it: [batch, n, rows, columns]."""
    deviation = tf.maximum(sizes / 6, 0.5)
    parts = []
    for axis, length in ((1, rows), (0, columns)):
        away = tf.cast(tf.range(length) - cells[..., axis, tf.newaxis], tf.float32)
        parts.append(tf.exp(-(away**2) / (2 * deviation[..., axis, tf.newaxis] ** 2)))
    return parts[0][..., :, tf.newaxis] * parts[1][..., tf.newaxis, :]


def _giou(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Generalised intersection over union of boxes, pair by pair: [..., 4] → [...], from -1 to 1."""

    def area(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        return tf.reduce_prod(tf.maximum(high - low, 0.0), axis=-1)

    low_1, high_1, low_2, high_2 = one[..., :2], one[..., 2:], other[..., :2], other[..., 2:]
    shared = area(tf.maximum(low_1, low_2), tf.minimum(high_1, high_2))
    union = area(low_1, high_1) + area(low_2, high_2) - shared
    hull = area(tf.minimum(low_1, low_2), tf.maximum(high_1, high_2))
    return tf.math.divide_no_nan(shared, union) - tf.math.divide_no_nan(hull - union, hull)


def _kernel(rng: np.random.Generator, size: int, rows: int, columns: int) -> tf.Variable:
    scale = (2 / (size * size * rows)) ** 0.5
    return tf.Variable(scale * rng.standard_normal([size, size, rows, columns]), dtype=tf.float32)
