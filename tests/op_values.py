"""Values and gradients of an op against float64; the yardstick is the error of the plain TensorFlow computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit.custom_ops.engine.ops import Op

MODES: dict[str, Callable[[Any], Any]] = {
    "eager": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, jit_compile=True, autograph=False),
}
Function = Callable[..., Any]  # tensors → a tensor or several


def normal(shape: Sequence[int], dtype: str, seed: int = 0) -> tf.Tensor:
    """Standard normal numbers."""
    return tf.cast(np.random.default_rng(seed).standard_normal(shape), dtype)


def opcheck_parameter(op: Op) -> Any:
    """For a test that runs ``opcheck``; gradients, sums and 3-D take longest: those run in ``make test-all`` alone."""
    is_dear = op.name.endswith(("Grad", "3d")) or op.name.startswith("Add")
    marks = [pytest.mark.exhaustive] if is_dear else []
    return pytest.param(op, id=op.name, marks=marks)


def with_gradients(function: Function) -> Function:
    """(inputs, output gradients) → outputs and the gradients of floating inputs."""

    def run(inputs: Sequence[tf.Tensor], upstream: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        floating = [tensor for tensor in inputs if tensor.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floating)
            outputs = tf.nest.flatten(function(*inputs))
        return [*outputs, *tape.gradient(outputs, floating, output_gradients=list(upstream))]

    return run


def at(dtype: tf.DType, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The floating ones cast to a dtype."""
    return [tf.cast(tensor, dtype) if tensor.dtype.is_floating else tensor for tensor in tensors]


def check(op: Function, plain: Function, inputs: Sequence[tf.Tensor], mode: str, absolute: float = 0.0) -> None:
    """Compares the op with ``plain``, which computes the same in TensorFlow and in the dtype that it gets.

    The error may be twice that of ``plain`` in float32 (with results rounded to the op's dtypes), which is what one
    writes without the op, two roundings of the largest value, and ``absolute``.
    """
    outputs = tf.nest.flatten(op(*inputs))
    upstream = [normal(output.shape, output.dtype, seed=7 + i) for i, output in enumerate(outputs)]
    found = MODES[mode](with_gradients(op))(inputs, upstream)
    narrow = with_gradients(plain)(at(tf.float32, inputs), at(tf.float32, upstream))
    naive = [tf.cast(value, one.dtype) for value, one in zip(narrow, found, strict=True)]
    exact = with_gradients(plain)(at(tf.float64, inputs), at(tf.float64, upstream))
    dtypes = [output.dtype for output in outputs] + [one.dtype for one in inputs if one.dtype.is_floating]
    assert [one.dtype for one in found] == dtypes
    for place, (one, value, right) in enumerate(zip(found, naive, exact, strict=True)):
        assert one.shape == right.shape
        if tf.size(right) == 0:
            continue
        wide, value, right = (tf.cast(tensor, tf.float64).numpy() for tensor in (one, value, right))
        error, allowed = np.abs(wide - right).max(), 2 * np.abs(value - right).max() + 2.0**-22 * np.abs(right).max()
        assert error <= allowed + absolute, f"result {place}: {error} off, allowed {allowed}"
