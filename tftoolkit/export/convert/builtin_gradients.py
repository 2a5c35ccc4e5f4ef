"""TensorFlow's gradient ops that TFLite lacks, as functions of ops that it has.

Each op of the table is what TensorFlow's CPU kernel computes, so a training step exported through
``tftoolkit.export.trainable_tflite`` follows TensorFlow's. Gradients of windows (convolution, pooling) are made of two
adjoint operations, ``Windows.take`` and ``Windows.put``, for any stride and padding. Dilated and grouped convolutions
are missing here because they are missing in TensorFlow: its CPU kernels have no gradient for them.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from tftoolkit.export.convert.windows import Windows
from tftoolkit.export.saved_models import Expand

Tensors = Sequence[tf.Tensor]


def substitute(node: node_def_pb2.NodeDef) -> Expand | None:
    """What to put in the place of a node (``saved_models.substitute`` asks for each); None: it stays."""
    return _TABLE.get(node.op)


def _pointwise(function: Callable[..., tf.Tensor], *attributes: str) -> Expand:
    """For ops of one output; the named attributes follow the inputs."""

    def expand(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
        return [function(*inputs, *map(operation.get_attr, attributes))]

    return expand


def _relu(gradients: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    return tf.where(features > 0, gradients, tf.zeros_like(gradients))


def _relu6(gradients: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    return tf.where((features > 0) & (features < 6), gradients, tf.zeros_like(gradients))


def _elu(gradients: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    return tf.where(outputs < 0, (outputs + 1) * gradients, gradients)


def _leaky_relu(gradients: tf.Tensor, features: tf.Tensor, alpha: float) -> tf.Tensor:
    return tf.where(features > 0, gradients, alpha * gradients)


def _softplus(gradients: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    return gradients * tf.sigmoid(features)


def _softsign(gradients: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    return gradients / tf.square(1 + tf.abs(features))


def _reciprocal(outputs: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    return -gradients * tf.square(outputs)


def _expm1(x: tf.Tensor) -> tf.Tensor:
    """The converter's own ``exp(x) - 1`` loses all digits near zero, where AdamW's bias correction needs them."""
    half = tf.tanh(0.5 * tf.minimum(x, 1.0))
    return tf.where(x < 1, 2 * half / (1 - half), tf.exp(x) - 1)


def _erf(x: tf.Tensor) -> tf.Tensor:
    """Rational minimax approximation of Eigen and XLA, within 4e-7 in float32."""
    x = tf.clip_by_value(x, -4.0, 4.0)
    square = tf.square(x)
    return x * _polynomial(_ERF_NUMERATOR, square) / _polynomial(_ERF_DENOMINATOR, square)


def _polynomial(coefficients: Sequence[float], x: tf.Tensor) -> tf.Tensor:
    value = tf.zeros_like(x)
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


_ERF_NUMERATOR = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05, -7.34990630326855e-04,
    -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_ERF_DENOMINATOR = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03, -1.42647390514189e-02,
)  # fmt: skip


def _max_pool(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    """Of equal largest values in a window the first in row order gets the gradient, as in TensorFlow's CPU kernel."""
    x, largest, gradients = inputs
    windows = Windows.of(operation, x.shape, operation.get_attr("ksize")[1:3])
    padded = windows.pad(x, x.dtype.min)
    free = tf.ones_like(largest, tf.bool)
    total = []
    for tap in windows.taps:
        hit = free & (windows.take(padded, tap) == largest)
        free = free & ~hit
        total.append(windows.put(tf.where(hit, gradients, tf.zeros_like(gradients)), tap))
    return [windows.unpad(tf.add_n(total))]


def _average_pool(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    """Padding does not count: each window's gradient is divided by the number of its real elements."""
    _, gradients = inputs
    windows = Windows.of(operation, operation.outputs[0].shape, operation.get_attr("ksize")[1:3])
    share = gradients / tf.constant(windows.counts(), gradients.dtype)
    return [windows.unpad(tf.add_n([windows.put(share, tap) for tap in windows.taps]))]


def _convolution_filter(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    """One product of all that the windows see with the gradient."""
    x, _, gradients = inputs
    height, width, depth, filters = operation.outputs[0].shape
    windows = Windows.of(operation, x.shape, (height, width))
    padded = windows.pad(x, 0)
    columns = tf.concat([windows.take(padded, tap) for tap in windows.taps], axis=3)
    flat = tf.reshape(columns, [-1, height * width * depth])
    product = tf.matmul(flat, tf.reshape(gradients, [-1, filters]), transpose_a=True)
    return [tf.reshape(product, [height, width, depth, filters])]


def _depthwise_filter(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    x, _, gradients = inputs
    height, width, depth, multiplier = operation.outputs[0].shape
    windows = Windows.of(operation, x.shape, (height, width))
    padded = windows.pad(x, 0)
    wide = tf.reshape(gradients, [-1, depth, multiplier])
    sums = [tf.reduce_sum(tf.reshape(windows.take(padded, tap), [-1, depth, 1]) * wide, axis=0) for tap in windows.taps]
    return [tf.reshape(tf.stack(sums), [height, width, depth, multiplier])]


def _depthwise_input(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    _, kernel, gradients = inputs
    depth, multiplier = kernel.shape[2:]
    windows = Windows.of(operation, operation.outputs[0].shape, kernel.shape[:2])
    wide = tf.reshape(gradients, [-1, depth, multiplier])
    shape = [-1, *gradients.shape[1:3], depth]
    total = [
        windows.put(tf.reshape(tf.reduce_sum(wide * kernel[row, column], axis=2), shape), (row, column))
        for row, column in windows.taps
    ]
    return [windows.unpad(tf.add_n(total))]


def _batch_norm(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    x, scale, offset, mean, variance = inputs
    _check_batch_norm(operation)
    batch_variance = variance
    if operation.get_attr("is_training"):
        mean = tf.reduce_mean(x, [0, 1, 2])
        variance = tf.reduce_mean(tf.square(x - mean), [0, 1, 2])
        count = math.prod(x.shape[:3])
        batch_variance = variance * (count / max(count - 1, 1))  # what moving averages are made of is unbiased
    normal = (x - mean) * tf.math.rsqrt(variance + operation.get_attr("epsilon"))
    # The last output serves cuDNN alone.
    return [normal * scale + offset, mean, batch_variance, mean, variance, tf.zeros_like(mean)]


def _batch_norm_gradient(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    """Mean and variance come from the forward op's substitute above."""
    gradients, x, scale, mean, variance, _ = inputs
    _check_batch_norm(operation)
    inverse = tf.math.rsqrt(variance + operation.get_attr("epsilon"))
    normal = (x - mean) * inverse
    by_offset = tf.reduce_sum(gradients, [0, 1, 2])
    by_scale = tf.reduce_sum(gradients * normal, [0, 1, 2])
    centred = gradients
    if operation.get_attr("is_training"):
        centred = gradients - (by_offset + normal * by_scale) / math.prod(x.shape[:3])
    unused = tf.zeros_like(mean)
    return [centred * (scale * inverse), by_scale, by_offset, unused, unused]


def _check_batch_norm(operation: tf.Operation) -> None:
    if operation.get_attr("data_format") != b"NHWC" or None in operation.inputs[0].shape[:3]:
        raise ValueError("batch normalisation needs channels last and fixed shapes")


def _strided_slice(operation: tf.Operation, inputs: Tensors) -> list[tf.Tensor]:
    """Every place of the slice gets its gradient; which places those are is known when the graph is made."""
    names = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    shape, begin, end, strides = (tf.get_static_value(tensor) for tensor in operation.inputs[:4])
    if any(value is None for value in (shape, begin, end, strides)):
        raise ValueError("the shape or the slice is not fixed")
    size = int(np.prod(shape))
    with tf.init_scope():
        everything = np.arange(size, dtype=np.int32).reshape(shape)
        masks = {name: operation.get_attr(name) for name in names}
        places = tf.raw_ops.StridedSlice(input=everything, begin=begin, end=end, strides=strides, **masks).numpy()
    return [tf.reshape(tf.scatter_nd(places.reshape(-1, 1), tf.reshape(inputs[4], [-1]), [size]), shape)]


_TABLE: dict[str, Expand] = {
    "ReluGrad": _pointwise(_relu),
    "Relu6Grad": _pointwise(_relu6),
    "EluGrad": _pointwise(_elu),
    "LeakyReluGrad": _pointwise(_leaky_relu, "alpha"),
    "SoftplusGrad": _pointwise(_softplus),
    "SoftsignGrad": _pointwise(_softsign),
    "ReciprocalGrad": _pointwise(_reciprocal),
    "InvGrad": _pointwise(_reciprocal),
    "Erf": _pointwise(_erf),
    "Erfc": _pointwise(lambda x: 1 - _erf(x)),
    "Expm1": _pointwise(_expm1),
    "MaxPoolGrad": _max_pool,
    "AvgPoolGrad": _average_pool,
    "Conv2DBackpropFilter": _convolution_filter,
    "DepthwiseConv2dNativeBackpropFilter": _depthwise_filter,
    "DepthwiseConv2dNativeBackpropInput": _depthwise_input,
    "FusedBatchNormV3": _batch_norm,
    "FusedBatchNormGradV3": _batch_norm_gradient,
    "StridedSliceGrad": _strided_slice,
}
