"""Ops that TensorFlow's TFLite converter gets wrong, in ops that it gets right."""

from collections.abc import Sequence

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from tftoolkit.export.saved_models import Expand


def substitute(node: node_def_pb2.NodeDef) -> Expand | None:
    """What to put in the place of a node (``saved_models.substitute`` asks for each); None: it stays."""
    return _is_inf if node.op == "IsInf" else None


def _is_inf(operation: tf.Operation, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The converter compares with infinity, which no number equals in LiteRT; the other two questions it gets right."""
    (x,) = inputs
    return [tf.logical_not(tf.logical_or(tf.math.is_finite(x), tf.math.is_nan(x)))]
