"""From a function to the op that it calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tftoolkit.custom_ops.emulation import twins
from tftoolkit.custom_ops.engine import ops, tf_host
from tftoolkit.custom_ops.engine.errors import LoadError
from tftoolkit.custom_ops.engine.ops import Op


def the_call(
    function: Callable[..., Any], args: Sequence[Any], attrs: dict[str, Any], device: str | None = None
) -> tuple[Op, list[Any], dict[str, Any]]:
    """The op, its inputs and its attributes when the function (an op, or made of one) is called.

    On device "emulated" the op is its twin there.

    Raises TypeError when it calls none or several, LoadError for an op without a kernel for the device.
    """
    op, inputs, attributes = (
        (function, list(args), attrs) if isinstance(function, Op) else _recorded(function, args, attrs)
    )
    if device == "emulated":
        return twins.twin(op), inputs, attributes
    if "CPU" not in op.handlers:
        raise LoadError(f"{op.name} has no CPU kernel to check; its library is {op.library.path}", code="op-no-kernel")
    return op, inputs, attributes


def _recorded(
    function: Callable[..., Any], args: Sequence[Any], attrs: dict[str, Any]
) -> tuple[Op, list[Any], dict[str, Any]]:
    found: list[tuple[Op, Any]] = []

    def trace() -> list[list[tf.Tensor]]:
        function(*args, **attrs)
        for node in tf.compat.v1.get_default_graph().get_operations():
            op = ops.find(node.type)
            if op is not None:
                found.append((op, node))
        return [list(node.inputs) for _, node in found]

    inputs = tf.function(trace, autograph=False)()
    if len(found) != 1:
        names = ", ".join(op.name for op, _ in found) or "none"
        raise TypeError(f"opcheck takes an op or a function that calls one op; {function} calls {names}")
    op, node = found[0]
    return op, op.group_inputs(inputs[0], node.get_attr), tf_host.node_attributes(op, node)
