"""Arguments for an op made from its schema alone, for checks from the command line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.engine.schema import DTYPES, REST, Argument, Attribute, named
from tftoolkit.custom_ops.opcheck import cases
from tftoolkit.custom_ops.opcheck.graphs import Array

_SIZES = ((5, 3, 7, 2), (13, 11, 17, 7), (37, 31, 29, 41))  # tried in turn: computed sizes may need large ones
_SCALARS = {"f32": 0.5, "f64": 0.5, "i32": 1, "i64": 1, "bool": True, "str": ""}


def make(op: Op, shape: Sequence[int] | None = None, dtype: str | None = None) -> tuple[list[Any], dict[str, Any]]:
    """Random inputs and needed attributes.

    Args:
      shape: of the first input; None for small sizes.
      dtype: what the first dtype variable stands for; None for the first one allowed.

    Raises ValueError when no sizes were found that fit.
    """
    schema = op.schema
    attributes = {item.name: _attribute(item) for item in schema.attributes if item.default is None}
    dtypes = {name: choices[0] for name, choices in schema.dtype_vars.items()}
    if dtype and dtypes:
        dtypes[next(iter(dtypes))] = next(short for short, name in DTYPES.items() if name == dtype)
    reason = None
    for sizes in _SIZES:
        dims: dict[str, Any] = {REST: (3,), **dict(zip(schema.dim_names, itertools.cycle(sizes)))}
        dims |= {} if shape is None else _bind(schema.inputs[0], shape)
        rng = np.random.default_rng(0)
        inputs = [
            [_random(rng, item, dims, dtypes) for _ in range(2)] if item.variadic else _random(rng, item, dims, dtypes)
            for item in schema.inputs
        ]
        try:
            cases.given(op, inputs, attributes)
        except ValueError as error:
            reason = error
        else:
            return inputs, attributes
    raise ValueError(
        f"no arguments found for {op}: {reason}. Give some in Python: custom_ops.opcheck({op.__name__}, ...)"
    )


def _bind(argument: Argument, shape: Sequence[int]) -> dict[str, Any]:
    rest = len(shape) - len(argument.dims) + 1
    found: dict[str, Any] = {}
    axis = 0
    for dim in argument.dims:
        if dim == REST:
            found[REST] = tuple(shape[axis : axis + rest])
        elif one := named(dim):
            found[one[0]] = shape[axis] - one[1]
        axis += rest if dim == REST else 1
    return found


def _random(rng: np.random.Generator, argument: Argument, dims: Mapping[str, Any], dtypes: Mapping[str, str]) -> Array:
    shape: list[int] = []
    for dim in argument.dims:
        if dim == REST:
            shape += dims[REST]
        else:
            name, shift = named(dim) or ("", 0)
            shape.append(dim if isinstance(dim, int) else dims[name] + shift)
    dtype = tf.dtypes.as_dtype(DTYPES[dtypes.get(argument.dtype, argument.dtype)])
    values: Any = rng.integers(0, 2, size=shape)  # in range also where they are indices
    if dtype.is_floating or dtype.is_complex:
        values = rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if dtype.is_complex else 0)
    return np.asarray(values).astype(dtype.as_numpy_dtype)


def _attribute(attribute: Attribute) -> Any:
    if attribute.choices:
        return DTYPES[attribute.choices[0]]
    value = _SCALARS[attribute.scalar_type]
    return [value, value] if attribute.is_list else value
