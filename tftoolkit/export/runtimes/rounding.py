"""Perturbs the elementary functions inside a SavedModel, for the bound of a parity check.

Sums, products, quotients and roots are rounded alike by all (IEEE 754), and what another order of summation does is
that of perturbed inputs and weights. Elementary functions are computed by each library in its own way, a few units in
the last place off. A mean is here, too: its roundings are relative to what it sums up, which may be much larger than
what is left when the mean is taken off.
"""

import functools
import zlib
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2

from tftoolkit.export import saved_models

_FUNCTIONS = frozenset(
    {
        "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atan2", "Atanh", "Cos", "Cosh", "Digamma", "Elu", "Erf", "Erfc",
        "Exp", "Expm1", "Lgamma", "Log", "Log1p", "LogSoftmax", "Mean", "Pow", "Rsqrt", "Selu", "Sigmoid", "Sin",
        "Sinh", "Softmax", "Softplus", "Tan", "Tanh", "Xlog1py", "Xlogy",
    }
)  # fmt: skip
_MINUS_ONE = frozenset({"Elu", "Selu"})  # exp(x) - 1: near zero the roundings are those of 1
_EXACT = "tftoolkit_exact"  # what an op is called that has been perturbed already


def has_functions(folder: Path) -> bool:
    """Whether a SavedModel holds anything that ``perturb_functions`` would change."""
    graphs = [meta.graph_def for meta in saved_models.read(folder).meta_graphs]
    return any(_is_function(node) for graph in graphs for node in saved_models.nodes(graph))


def perturb_functions(folder: Path, relative: float) -> None:
    """Multiplies what elementary functions give in the SavedModel by random numbers within ``relative`` of 1.

    Where such a function less 1 is meant, up to ``relative`` is added. The numbers are others for each element and
    wherever the values are others: in other ops, iterations and calls.
    """
    saved_models.substitute(
        folder, lambda node: functools.partial(_perturbed, relative) if _is_function(node) else None
    )


def _is_function(node: node_def_pb2.NodeDef) -> bool:
    return node.op in _FUNCTIONS and tf.as_dtype(node.attr["T"].type).is_floating and not node.name.startswith(_EXACT)


def _perturbed(relative: float, operation: tf.Operation, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    attributes = {name: value for name, value in operation.node_def.attr.items() if not name.startswith("_")}
    graph = tf.compat.v1.get_default_graph()
    types = [output.dtype for output in operation.outputs]
    value = graph.create_op(operation.type, list(inputs), types, name=_EXACT, attrs=attributes).outputs[0]
    wide = tf.cast(value, tf.float64 if value.dtype == tf.float64 else tf.float32)
    # No state and no seed to hand in: the values themselves choose the numbers.
    chosen = tf.reduce_sum(tf.reshape(tf.bitcast(tf.reduce_sum(wide), tf.int32), [-1]))
    seed = [chosen, zlib.crc32(operation.type.encode()) % 2**31]
    noise = tf.random.stateless_uniform(tf.shape(wide), seed, -relative, relative, wide.dtype)
    moved = tf.where(wide < 0, wide + noise, wide) if operation.type in _MINUS_ONE else wide * (1 + noise)
    return [tf.cast(moved, value.dtype)]
