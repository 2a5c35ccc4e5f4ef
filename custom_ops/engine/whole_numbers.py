"""Refuses numbers that an integer input cannot hold, which TensorFlow cuts or wraps around without a word."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.engine.declaration import Declaration
from tftoolkit.custom_ops.engine.op_def import dtype_of
from tftoolkit.custom_ops.engine.schema import DTYPES, Argument

_PLAIN = (np.ndarray, np.generic, list, tuple, bool, int, float)  # what TensorFlow casts as C does, wrapping around


def check(op: Declaration, inputs: Sequence[Any]) -> None:
    """Raises TypeError for arrays and numbers that an integer or bool input cannot hold: 1.7, or 300 as u8."""
    for place in op.whole_inputs:
        argument, value = op.schema.inputs[place], inputs[place]
        for item in value if argument.variadic and isinstance(value, list | tuple) else [value]:
            if isinstance(item, _PLAIN):
                wanted = _wanted_dtype(op, argument, inputs)
                text = _cut(item, wanted) if wanted.is_integer or wanted.is_bool else ""
                if text:
                    raise TypeError(
                        f"{op.__name__}: {argument.name} must be {argument.dtype}, got {text}, which {wanted.name} "
                        "cannot hold; if it is to be cut, say so with tf.cast"
                    )


def _wanted_dtype(op: Declaration, argument: Argument, inputs: Sequence[Any]) -> tf.DType:
    """What TensorFlow converts an input to: for a variable, the dtype of the first tensor, else of the first value."""
    if argument.dtype in DTYPES:
        return dtype_of(argument.dtype)
    values = [
        item
        for other, value in zip(op.schema.inputs, inputs, strict=True) if other.dtype == argument.dtype
        for item in (value if other.variadic and isinstance(value, list | tuple) else [value]) if item is not None
    ]  # fmt: skip
    first = next((value for value in values if not isinstance(value, _PLAIN)), values[0])
    return tf.dtypes.as_dtype(first.dtype if hasattr(first, "dtype") else tf.convert_to_tensor(first).dtype)


def _cut(value: Any, wanted: tf.DType) -> str:
    """What of the value the dtype cannot hold, in words; empty where it holds all."""
    try:
        array = np.asarray(value)
    except Exception:  # symbolic tensors in a list, ragged lists: for TensorFlow to judge
        return ""
    if array.dtype.kind not in "biufc" or np.can_cast(array.dtype, wanted.as_numpy_dtype):
        return ""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = array.astype(wanted.as_numpy_dtype) != array
    return f"{array[wrong].flat[0]} of {array.dtype.name}" if wrong.any() else ""
