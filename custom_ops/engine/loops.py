"""Loops, and their gradients, that XLA can compile whoever traced them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.python.ops import control_flow_ops


@contextlib.contextmanager
def for_xla() -> Iterator[None]:
    """What is traced within can be compiled later, by a function that calls what was saved or traced without XLA.

    Else TensorFlow keeps the shapes of what a loop computes for the loop's gradient, as values that XLA does not know.
    """
    if tf.executing_eagerly():
        yield
        return
    context = control_flow_ops.XLAControlFlowContext()
    context.Enter()
    try:
        yield
    finally:
        context.Exit()
