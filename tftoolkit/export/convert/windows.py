"""The windows of a convolution or pooling, in ops that TFLite has: what each sees, and the adjoint of that."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows over the two middle axes of [batch, height, width, channels]; each pair is (rows, columns).

    ``before`` and ``after``: zeros that pad the input of ``size``. A *tap* is a position inside the kernel.
    """

    size: Pair
    outputs: Pair
    kernel: Pair
    strides: Pair
    before: Pair
    after: Pair

    @classmethod
    def of(cls, operation: tf.Operation, input_shape: tf.TensorShape, kernel: Sequence[int]) -> "Windows":
        """The windows of a convolution or pooling op, or of its gradient.

        Raises ValueError where channels do not come last or the input's shape is not fixed.
        """
        attributes = operation.node_def.attr
        if operation.get_attr("data_format") != b"NHWC":
            raise ValueError("channels must come last (NHWC)")
        if None in input_shape[1:]:
            raise ValueError(f"needs fixed shapes, the input is {input_shape}")
        if "dilations" in attributes and any(dilation != 1 for dilation in operation.get_attr("dilations")):
            raise ValueError("dilated windows: TensorFlow's CPU kernels have no gradient for them either")
        axes = []
        for axis in (0, 1):
            stride = operation.get_attr("strides")[1 + axis]
            axes.append(_axis(operation, axis, input_shape[1 + axis], kernel[axis], stride))
        outputs, before, after = zip(*axes, strict=True)
        strides = _pair(operation.get_attr("strides")[1:3])
        return cls(_pair(input_shape[1:3]), _pair(outputs), _pair(kernel), strides, _pair(before), _pair(after))

    @property
    def taps(self) -> list[Pair]:
        return [(row, column) for row in range(self.kernel[0]) for column in range(self.kernel[1])]

    def pad(self, x: tf.Tensor, value: Any) -> tf.Tensor:
        """What ``take`` takes from: large enough for every tap."""
        margins = [[0, 0], *([b, a] for b, a in zip(self.before, self.after, strict=True)), [0, 0]]
        return tf.pad(x, margins, constant_values=value) if np.any(margins) else x

    def take(self, padded: tf.Tensor, tap: Pair) -> tf.Tensor:
        """What each window has at the tap: [batch, *outputs, channels]."""
        (top, bottom), (left, right) = (self._extent(axis, tap[axis]) for axis in (0, 1))
        return padded[:, top : bottom : self.strides[0], left : right : self.strides[1], :]

    def put(self, y: tf.Tensor, tap: Pair) -> tf.Tensor:
        """The adjoint of ``take``: y where each window has the tap, zeros elsewhere, in the padded shape."""
        channels = y.shape[3]
        rows, columns = self.outputs
        # One axis after the other and with few axes: TFLite's PAD takes at most five.
        y = _spread(tf.reshape(y, [-1, rows, columns * channels]), self.strides[0])
        y = tf.reshape(y, [-1, columns, channels])
        y = tf.reshape(_spread(y, self.strides[1]), [-1, *(self._spread_size(axis) for axis in (0, 1)), channels])
        margins = [[0, 0]]
        for axis in (0, 1):
            start, end = self._extent(axis, tap[axis])
            margins.append([start, self._padded_size(axis) - end])
        return tf.pad(y, [*margins, [0, 0]])

    def unpad(self, padded: tf.Tensor) -> tf.Tensor:
        """The adjoint of ``pad``."""
        (top, left), (height, width) = self.before, self.size
        return padded[:, top : top + height, left : left + width, :]

    def counts(self) -> np.ndarray:
        """How many elements of the input, without padding, each window has: [1, *outputs, 1]."""
        rows, columns = (
            np.sum([self._inside(axis, tap) for tap in range(self.kernel[axis])], axis=0) for axis in (0, 1)
        )
        return np.outer(rows, columns)[None, :, :, None]

    def _inside(self, axis: int, tap: int) -> np.ndarray:
        start, end = self._extent(axis, tap)
        positions = np.arange(start, end, self.strides[axis]) - self.before[axis]
        return (positions >= 0) & (positions < self.size[axis])

    def _extent(self, axis: int, tap: int) -> Pair:
        """Where the taps of the first and of the last window lie in the padded input; the end is exclusive."""
        return tap, tap + self._spread_size(axis)

    def _spread_size(self, axis: int) -> int:
        return (self.outputs[axis] - 1) * self.strides[axis] + 1

    def _padded_size(self, axis: int) -> int:
        return self.before[axis] + self.size[axis] + self.after[axis]


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return first, second


def _axis(operation: tf.Operation, axis: int, size: int, kernel: int, stride: int) -> tuple[int, ...]:
    """Number of windows, padding before and after: TensorFlow's rules (``tf.nn.convolution``)."""
    padding = operation.get_attr("padding")
    before, after = 0, 0
    if padding == b"SAME":
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        before, after = total // 2, total - total // 2
    elif padding == b"EXPLICIT":
        before, after = operation.get_attr("explicit_paddings")[2 + 2 * axis : 4 + 2 * axis]
    return (size + before + after - kernel) // stride + 1, before, after


def _spread(x: tf.Tensor, stride: int) -> tf.Tensor:
    """[n, size, inner] with ``stride - 1`` zeros between neighbours of the middle axis."""
    _, size, inner = x.shape
    if stride == 1:
        return x
    separate = tf.pad(tf.reshape(x, [-1, 1, inner]), [[0, 0], [0, stride - 1], [0, 0]])
    return tf.reshape(separate, [-1, size * stride, inner])[:, : (size - 1) * stride + 1, :]
