"""Ops that tf2onnx 1.17 converts wrongly or not at all: what TensorFlow computes, in ONNX's ops.

Integers are rounded towards zero in its floor division and floor modulo, an index of -1 counts from the end in its
one_hot, and it lacks erfc.
"""

from typing import Any

import numpy as np

# onnxruntime divides no others.
_DIVISIBLE = (np.int32, np.int64, np.float16, np.float32, np.float64)


def handlers() -> dict[str, Any]:
    """For the argument ``custom_op_handlers`` of tf2onnx."""
    table = {"Erfc": _erfc, "FloorDiv": _floor_div, "FloorMod": _floor_mod, "OneHot": _one_hot}
    return {op_type: (lambda graph, node, name, _, repair=repair: repair(_Ops(graph, node, name)), []) for
            op_type, repair in table.items()}  # fmt: skip


class _Ops:
    """Makes nodes in the place of one of TensorFlow's."""

    def __init__(self, graph: Any, node: Any, name: str) -> None:
        self.graph, self.node, self._name = graph, node, name
        self.inputs = list(node.input)

    def dtype(self, value: str) -> np.dtype:
        from tf2onnx import utils

        return np.dtype(utils.map_onnx_to_numpy_type(self.graph.get_dtype(value)))

    def make(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        return self.graph.make_node(op_type, list(inputs), attr=attributes, op_name_scope=self._name).output[0]

    def constant(self, value: Any, dtype: Any) -> str:
        from tf2onnx import utils

        return self.graph.make_const(utils.make_name(self._name), np.asarray(value, dtype)).output[0]

    def cast(self, value: str, dtype: Any) -> str:
        from tf2onnx import utils

        return self.make("Cast", value, to=utils.map_numpy_to_onnx_dtype(np.dtype(dtype)))

    def instead(self, value: str) -> None:
        """The value takes the node's place."""
        shapes, dtypes, outputs = self.node.output_shapes, self.node.output_dtypes, self.node.output
        self.graph.remove_node(self.node.name)
        self.graph.make_node("Identity", [value], name=self.node.name, outputs=outputs, shapes=shapes, dtypes=dtypes)

    def rounds_up(self, remainder: str, divisor: str) -> str:
        """Where division towards zero gives more than floor division: the remainder has not the divisor's sign."""
        zero = self.constant(0, self.dtype(divisor))
        signs = self.make("Xor", self.make("Less", remainder, zero), self.make("Less", divisor, zero))
        return self.make("And", signs, self.make("Not", self.make("Equal", remainder, zero)))


def _erfc(ops: _Ops) -> None:
    """1 - erf(x): every exact gelu has one."""
    (x,) = ops.inputs
    ops.instead(ops.make("Sub", ops.constant(1, ops.dtype(x)), ops.make("Erf", x)))


def _floor_div(ops: _Ops) -> None:
    x, y = ops.inputs
    dtype = ops.dtype(x)
    if dtype.kind == "f":
        return ops.instead(ops.make("Floor", ops.make("Div", x, y)))
    wide = dtype if dtype in _DIVISIBLE else np.dtype(np.int32 if dtype.itemsize < 4 else np.int64)
    if wide != dtype:
        x, y = ops.cast(x, wide), ops.cast(y, wide)
    quotient = ops.make("Div", x, y)
    remainder = ops.make("Sub", x, ops.make("Mul", quotient, y))
    found = ops.make("Sub", quotient, ops.cast(ops.rounds_up(remainder, y), wide))
    return ops.instead(found if wide == dtype else ops.cast(found, dtype))


def _floor_mod(ops: _Ops) -> None:
    x, y = ops.inputs
    if ops.dtype(x).kind in "iu":
        return ops.instead(ops.make("Mod", x, y, fmod=0))  # the sign is the divisor's
    remainder = ops.make("Mod", x, y, fmod=1)
    missing = ops.make("Mul", ops.cast(ops.rounds_up(remainder, y), ops.dtype(y)), y)
    return ops.instead(ops.make("Add", remainder, missing))


def _one_hot(ops: _Ops) -> None:
    """Compares with every index, so that one that isn't there gives nothing."""
    indices, depth, on, off = ops.inputs
    axis, rank = ops.node.get_attr_value("axis", -1), ops.graph.get_rank(indices)
    if axis != -1 and rank is None:
        raise ValueError("one_hot along another axis than the last, of indices of unknown rank")
    zero, one = (ops.constant(number, np.int64) for number in (0, 1))
    classes = ops.make("Range", zero, ops.make("Squeeze", ops.cast(depth, np.int64)), one)
    if axis != -1:
        classes = ops.make("Reshape", classes, ops.constant([-1, *[1] * (rank - axis)], np.int64))
    column = ops.make("Unsqueeze", ops.cast(indices, np.int64), ops.constant([axis], np.int64))
    hit = ops.make("Equal", column, classes)
    dtype = ops.dtype(on)
    if dtype.kind == "b" or dtype.itemsize < 4:  # onnxruntime chooses between no such numbers
        wide = np.dtype(np.float32 if dtype.kind == "f" else np.int32)
        return ops.instead(ops.cast(ops.make("Where", hit, ops.cast(on, wide), ops.cast(off, wide)), dtype))
    return ops.instead(ops.make("Where", hit, on, off))
