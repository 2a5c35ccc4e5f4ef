"""Variables whose values ops replace without a copy."""

from __future__ import annotations

import tensorflow as tf

from tftoolkit.custom_ops.engine import tf_host


def memory(variable: tf.Variable, after: tf.Tensor) -> tf.Tensor:
    """What ``variable`` holds, for an op that computes in place and whose result is then assigned to the variable.

    In a graph, if nobody else uses the value by then, the op overwrites the variable's own memory; eagerly and within
    XLA this is an ordinary read. Nothing may read the variable between this and the assignment.

    Args:
      after: a tensor that is known when nobody uses what was read before any more. TensorFlow lets this wait for the
        reads, but not for what is computed from them.

    Raises BuildError, LoadError.
    """
    if tf.executing_eagerly():  # Python holds what it reads
        return variable.read_value()
    with tf.control_dependencies([after]):
        return tf_host.plain_ops().tf_toolkit_variable_memory(variable.handle, dtype=variable.dtype)
