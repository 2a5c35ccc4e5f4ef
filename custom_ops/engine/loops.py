"""Loops whose gradients XLA can compile, whoever traced them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops import control_flow_ops


def scan(step: Callable[..., Any], elements: Any, first: Any, *, reverse: bool = False) -> Any:
    """``tf.scan``, which XLA may also differentiate in a function that was traced without XLA: a saved one, say.

    There, TensorFlow keeps the shapes of what a loop computes for the loop's gradient, as values that XLA doesn't know,
    unless the loop's body says that it is XLA's. No more than the body: around it, gradients of other operations would
    change to such as have none themselves.
    """
    outside = tf_ops.get_default_graph()

    def body(values: Any, given: Any) -> Any:
        inside = tf_ops.get_default_graph()
        if inside is not outside:  # as it is eagerly
            inside._set_control_flow_context(control_flow_ops.XLAControlFlowContext())
        return step(values, given)

    return tf.scan(body, elements, first, reverse=reverse)
