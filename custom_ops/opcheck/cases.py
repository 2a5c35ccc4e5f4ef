"""Inputs to check an op on: those given, and those made of them by the schema (other dtypes, sizes, attributes)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tftoolkit.custom_ops.engine.ops import Op
from tftoolkit.custom_ops.engine.schema import DTYPES, REST, Argument, named
from tftoolkit.custom_ops.engine.shapes import output_shapes
from tftoolkit.custom_ops.opcheck.graphs import Array, as_array, is_inexact

Value = Array | list[Array] | None

# 1, primes, and both sides of the widths of vector registers.
_SIZES = (1, 2, 3, 7, 9, 15, 17, 31, 33, 67)
_RESTS: tuple[tuple[int, ...], ...] = ((), (1,), (3,), (2, 3), (5, 1, 2))
_LARGE = 2**16  # elements: enough for a kernel to cut its work into tasks


@dataclass(frozen=True, eq=False)
class Case:
    """A call of an op: inputs as its caller gives them, as NumPy arrays, and all attributes."""

    label: str
    inputs: tuple[Value, ...]
    attributes: Mapping[str, Any]

    @property
    def flat(self) -> list[Array]:
        """The inputs without None, lists laid flat."""
        return [
            item for value in self.inputs if value is not None
            for item in (value if isinstance(value, list) else [value])
        ]  # fmt: skip

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for calls that one traced function with unknown sizes can serve."""
        lists = tuple(len(value) if isinstance(value, list) else value is not None for value in self.inputs)
        return lists, tuple((item.dtype.name, item.ndim) for item in self.flat), repr(sorted(self.attributes.items()))

    def group(self, flat: Sequence[Any]) -> list[Any]:
        """The opposite of ``flat``, for values such as tensors."""
        rest = iter(flat)
        return [
            None if value is None else [next(rest) for _ in value] if isinstance(value, list) else next(rest)
            for value in self.inputs
        ]

    def function(self, op: Op, run: Callable[..., Any]) -> Callable[..., list[tf.Tensor]]:
        """The op (or its reference) with this case's attributes, from flat tensors to flat tensors."""

        def flat_function(*flat: tf.Tensor) -> list[tf.Tensor]:
            outputs = run(*self.group(flat), **self.attributes)
            # An optional output that nobody asked for is an empty one, so that all calls have the same outputs.
            return [
                tf.zeros([0], dtype) if output is None else tf.convert_to_tensor(output)
                for output, (_, dtype) in zip(op.flat_outputs(outputs), output_dtypes(op, self), strict=True)
            ]

        return flat_function


def given(op: Op, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Case:
    """The call that the user gave. Raises TypeError or ValueError when it does not fit the schema."""
    bound, rest = op._bind(tuple(inputs), dict(attributes))
    dtypes: dict[str, Any] = {}

    def array(argument: Argument, value: Any) -> Array:
        wanted = DTYPES.get(argument.dtype, dtypes.get(argument.dtype))
        found = as_array(tf.convert_to_tensor(value, None if hasattr(value, "dtype") else wanted))
        dtypes.setdefault(argument.dtype, found.dtype.name)
        return found

    values = [
        None if value is None else [array(argument, item) for item in value] if argument.variadic
        else array(argument, value)
        for argument, value in zip(op.schema.inputs, bound, strict=True)
    ]  # fmt: skip
    case = Case("as given", tuple(values), op.complete(rest))
    shapes_of_outputs(op, case)
    return case


def shapes_of_outputs(op: Op, case: Case) -> list[tuple[int, ...]]:
    """Of all outputs, lists laid flat. Raises ValueError when the inputs do not fit the schema."""
    shapes = [
        None if value is None else [item.shape for item in value] if isinstance(value, list) else value.shape
        for value in case.inputs
    ]
    integers = {
        item.name: case.attributes[item.name] for item in op.schema.attributes if item.type in ("i32", "i64", "bool")
    }
    found = output_shapes(op.schema, shapes, integers)
    return [one for shape in found for one in (shape if isinstance(shape, list) else [shape])]


def output_dtypes(op: Op, case: Case) -> list[tuple[str, str]]:
    """Name and dtype of all outputs, lists laid flat."""
    length = next((len(value) for value in case.inputs if isinstance(value, list)), 0)
    bound = {argument.dtype: item.dtype.name for argument, item in _arguments(op, case)}
    bound |= {attribute.type: case.attributes[attribute.name] for attribute in op.schema.dtype_attributes}
    found = []
    for output in op.schema.outputs:
        names = [f"{output.name}[{i}]" for i in range(length)] if output.variadic else [output.name]
        found += [(name, DTYPES.get(output.dtype) or bound[output.dtype]) for name in names]
    return found


def input_names(op: Op, case: Case) -> list[str]:
    """Names of the flat inputs."""
    names: list[str] = []
    for argument, value in zip(op.schema.inputs, case.inputs, strict=True):
        names += [f"{argument.name}[{i}]" for i in range(len(value))] if isinstance(value, list) else []
        names += [argument.name] if isinstance(value, np.ndarray) else []
    return names


def _arguments(op: Op, case: Case) -> Iterator[tuple[Argument, Array]]:
    for argument, value in zip(op.schema.inputs, case.inputs, strict=True):
        for item in value if isinstance(value, list) else [] if value is None else [value]:
            yield argument, item


def _map(op: Op, case: Case, change: Callable[[Argument, Array], Array]) -> tuple[Value, ...]:
    return tuple(
        None if value is None else [change(argument, item) for item in value] if isinstance(value, list)
        else change(argument, value)
        for argument, value in zip(op.schema.inputs, case.inputs, strict=True)
    )  # fmt: skip


def other_dtypes(op: Op, case: Case) -> Iterator[Case]:
    """The same values in every other dtype that the schema allows, one dtype variable at a time."""
    bound = {argument.dtype: item.dtype.name for argument, item in _arguments(op, case)}
    for variable, choices in op.schema.dtype_vars.items():
        for choice in choices:
            if variable in bound and DTYPES[choice] != bound[variable]:
                change = _Cast(variable, DTYPES[choice])
                yield replace(case, label=f"{variable} = {choice}", inputs=_map(op, case, change))


@dataclass(frozen=True)
class _Cast:
    variable: str
    dtype: str

    def __call__(self, argument: Argument, array: Array) -> Array:
        if argument.dtype != self.variable:
            return array
        values = array.real if array.dtype.kind == "c" and not self.dtype.startswith("complex") else array
        if self.dtype.startswith("uint"):
            values = np.abs(values)
        return np.asarray(values).astype(tf.dtypes.as_dtype(self.dtype).as_numpy_dtype)


def other_attributes(op: Op, case: Case) -> Iterator[Case]:
    """Each numeric attribute with another value, each dtype with every other."""
    for attribute in op.schema.attributes:
        value = case.attributes[attribute.name]
        for choice in attribute.choices:
            if DTYPES[choice] != value:
                others = {**case.attributes, attribute.name: DTYPES[choice]}
                yield replace(case, label=f"{attribute.name} = {choice}", attributes=others)
        changed = tuple(map(_other, value)) if isinstance(value, tuple) else _other(value)
        if changed != value:
            label = f"{attribute.name} = {changed}"
            yield replace(case, label=label, attributes={**case.attributes, attribute.name: changed})


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return (value * 1.25 or 0.5) if isinstance(value, float) else value


def absent_inputs(op: Op, case: Case) -> Iterator[Case]:
    """Each optional input left out."""
    for i, argument in enumerate(op.schema.inputs):
        if argument.optional and case.inputs[i] is not None:
            inputs = (*case.inputs[:i], None, *case.inputs[i + 1 :])
            yield replace(case, label=f"without {argument.name}", inputs=inputs)


def other_sizes(op: Op, case: Case) -> Iterator[Case]:
    """Each named dimension at odd sizes, all of them odd at once, and ``...`` at other ranks."""
    names = _bound_names(op, case)
    for name, size in itertools.product(names, _SIZES):
        yield from resized(op, case, f"{name} = {size}", {name: size})
    if len(names) > 1:
        yield from resized(op, case, "all sizes 1", dict.fromkeys(names, 1))
        sizes = dict(zip(names, itertools.cycle((17, 5, 31, 3))))
        yield from resized(op, case, ", ".join(f"{name} = {size}" for name, size in sizes.items()), sizes)
    yield from other_ranks(op, case)


def other_ranks(op: Op, case: Case) -> Iterator[Case]:
    """``...`` as no, one, two and three dimensions."""
    if any(REST in argument.dims for argument in op.schema.inputs):
        for rest in _RESTS:
            yield from resized(op, case, f"... = {list(rest)}", {}, rest)


def empty_sizes(op: Op, case: Case) -> Iterator[Case]:
    """Zero in each dimension."""
    names = _bound_names(op, case)
    for name in names:
        yield from resized(op, case, f"{name} = 0", {name: 0})
    if any(REST in argument.dims for argument in op.schema.inputs):
        yield from resized(op, case, "... = [0]", {}, (0,))
        yield from resized(op, case, "... = [2, 0]", {}, (2, 0))
        for name in names:
            yield from resized(op, case, f"... = [0], {name} = 0", {name: 0}, (0,))


def large(op: Op, case: Case) -> Case:
    """The same on large inputs, or as given where sizes are fixed."""
    names = _bound_names(op, case)
    most = max(item.size for item in case.flat)
    if most >= _LARGE:
        return case
    if any(REST in argument.dims for argument in op.schema.inputs):
        per_row = max(
            int(np.prod(item.shape[len(item.shape) - len(argument.dims) + 1 :]))
            for argument, item in _arguments(op, case)
        )
        found = resized(op, case, "large", {}, (max(1, _LARGE // max(1, per_row)),))
    else:
        dims = max((sum(named(dim) is not None for dim in argument.dims) for argument in op.schema.inputs), default=1)
        found = resized(op, case, "large", dict.fromkeys(names, int(_LARGE ** (1 / max(1, dims)))))
    return next(found, case)


def _bound_names(op: Op, case: Case) -> list[str]:
    present = [argument for argument, _ in _arguments(op, case)]
    found = {one[0] for argument in present for dim in argument.dims if (one := named(dim))}
    return [name for name in op.schema.dim_names if name in found]


def resized(
    op: Op, case: Case, label: str, sizes: Mapping[str, int], rest: tuple[int, ...] | None = None
) -> Iterator[Case]:
    """The case with some dimensions changed; nothing where the schema (a negative output size, say) forbids it."""
    rng = np.random.default_rng(0)

    def change(argument: Argument, array: Array) -> Array:
        listed = len(argument.dims) - (REST in argument.dims)
        shape: list[int] = []
        for dim in argument.dims:
            here = len(shape)
            if dim == REST:
                shape += array.shape[here : here + array.ndim - listed] if rest is None else rest
            else:
                old = array.shape[_axis(argument, dim, array)]
                name, shift = named(dim) or ("", 0)
                shape.append(max(0, sizes[name] + shift) if name in sizes else old)
        return array if tuple(shape) == array.shape else _sample(array, tuple(shape), rng)

    changed = replace(case, label=label, inputs=_map(op, case, change))
    try:
        shapes_of_outputs(op, changed)
    except ValueError:
        return
    if any(one.shape != other.shape for one, other in zip(changed.flat, case.flat, strict=True)):
        yield changed


def _axis(argument: Argument, dim: Any, array: Array) -> int:
    """Where a dimension of the argument lies in the array."""
    place = argument.dims.index(dim)
    behind_rest = REST in argument.dims and place > argument.dims.index(REST)
    return array.ndim - len(argument.dims) + place if behind_rest else place


def resampled(case: Case) -> list[Array]:
    """Other flat inputs of the same shapes."""
    rng = np.random.default_rng(3)
    return [_sample(array, array.shape, rng) for array in case.flat]


def _sample(array: Array, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Values like those of ``array``: drawn from it, and, for floats, from between them, so that ties are rare."""
    if array.size == 0 or 0 in shape:
        return np.zeros(shape, array.dtype)
    flat = array.reshape(-1)
    first, second = (np.asarray(flat[rng.integers(array.size, size=shape)]) for _ in range(2))
    with np.errstate(invalid="ignore"):
        integral = not is_inexact(array.dtype) or bool(np.all(flat.real == np.round(flat.real.astype(np.float64))))
    if integral:
        return first
    weight = rng.random(shape)
    return np.asarray(first * weight + second * (1 - weight)).astype(array.dtype)
