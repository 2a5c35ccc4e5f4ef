"""The ops of planted.cc with their references and gradients: right ones, and one for every bug."""

import ctypes
from pathlib import Path

import tensorflow as tf

from tftoolkit import custom_ops

planted = custom_ops.load("Planted", [Path(__file__).with_suffix(".cc")])
planted._shared_object.set_offset.argtypes = [ctypes.c_float]
planted._shared_object.set_offset(1.0)


def scale_gradient(node, dy):
    x, gamma = node.inputs
    dy = dy * tf.cast(node.get_attr("alpha"), x.dtype)
    return dy * gamma, tf.reduce_sum(tf.reshape(dy * x, [-1, tf.shape(x)[-1]]), axis=0)


for name in ("right", "refusing", "wrong_gradient", "rows_only", "sparse", "shortcut", "one_dtype", "no_gradient"):
    getattr(planted, name).reference(lambda x, gamma, *, alpha: x * gamma * tf.cast(alpha, x.dtype))
planted.right.gradient(scale_gradient)
planted.wrong_value.reference(lambda x, gamma, *, alpha: x * gamma)
planted.unwritten.reference(tf.identity)
planted.reads_past.reference(lambda x: tf.reduce_max(x, axis=-1))
planted.writes_past.reference(tf.identity)
planted.swallows_nan.reference(lambda x: tf.maximum(x, 0))
planted.crashes_on_empty.reference(lambda x: tf.reduce_mean(x, axis=-1))
planted.centre.reference(lambda x: x - tf.reduce_mean(x))
planted.stateful.reference(lambda x: x + 1)
planted.square.reference(tf.square)
planted.race.reference(lambda x: tf.reduce_sum(x, axis=-1))
planted.xla_only.reference(lambda x, *, alpha, beta: alpha * x + beta)
planted.wrong_shape.reference(lambda x: x[1:] - x[:-1])


@planted.refusing.gradient
def _(node, dy):
    raise NotImplementedError("Refusing has no gradient on purpose")


@planted.wrong_gradient.gradient
def _(node, dy):
    dx, dgamma = scale_gradient(node, dy)
    return dx * 1.001, dgamma


@planted.no_reference.gradient
def _(node, dy):
    dx, dgamma = scale_gradient(node, dy)
    return dx, dgamma * 1.001


@planted.rows_only.gradient
def _(node, dy):
    """Right for matrices only: other ranks have other dimensions to reduce over."""
    x, _ = node.inputs
    dx, _ = scale_gradient(node, dy)
    return dx, tf.reduce_sum(dy * x * tf.cast(node.get_attr("alpha"), x.dtype), axis=0)


@planted.sparse.gradient(sparse=True)
def _(node, dy):
    """Takes the rows of a sparse output gradient for all rows."""
    if isinstance(dy, tf.IndexedSlices):
        dy = tf.pad(dy.values, [[0, 1], [0, 0]])
    return scale_gradient(node, dy)


@planted.shortcut.gradient
def _(node, dy):
    dx = planted.shortcut_back(dy, node.inputs[1], alpha=node.get_attr("alpha"))
    return dx, scale_gradient(node, dy)[1]


@planted.one_dtype.gradient
def _(node, dy):
    dx = planted.one_dtype_back(dy, node.inputs[1], alpha=node.get_attr("alpha"))
    return dx, scale_gradient(node, dy)[1]


@planted.square.gradient
def _(node, dy):
    return planted.square_back(dy, node.inputs[0])


@planted.square_back.gradient
def _(node, upstream):
    return 2 * node.inputs[1] * upstream, None  # forgets that dx depends on x
