"""Random calls that fit a schema, for fuzzing and sanitizers. Needs neither TensorFlow nor JAX."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tftoolkit.custom_ops.engine.schema import DTYPES, REST, Argument, AttributeValue, Schema, named
from tftoolkit.custom_ops.engine.shapes import Shape, output_shapes

SIZES = (0, 1, 2, 3, 5, 7, 13, 64, 257)  # nothing, one, primes, whole registers and a bit more
_VALUES: Mapping[str, tuple[AttributeValue, ...]] = {
    "f32": (0.5, 1.0, 2.0), "f64": (0.5, 1.0, 2.0), "i32": (1, 2, 3), "i64": (1, 2, 3), "bool": (False, True),
    "str": ("", "a", "é"),
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """What an op may be called with.

    Attributes:
      dtypes: dtype variable -> what it stands for, a name of ``schema.DTYPES``.
      inputs: a shape for each input, a list of shapes for ``*name``, None for an absent ``name?``.
      attributes: all of them.
    """

    schema: Schema
    dtypes: Mapping[str, str]
    inputs: tuple[Shape | list[Shape] | None, ...]
    attributes: Mapping[str, AttributeValue]

    def dtype(self, argument: Argument) -> str:
        return self.dtypes.get(argument.dtype, argument.dtype)

    def outputs(self) -> list[Shape | list[Shape]]:
        """Raises ValueError where the attributes make an output impossible."""
        integers = {name: int(value) for name, value in self.attributes.items() if isinstance(value, int)}
        return output_shapes(self.schema, self.inputs, integers)


def sample(schema: Schema, rng: random.Random, *, sizes: Sequence[int] = SIZES, max_elements: int = 1 << 16) -> Call:
    """A call with random dtypes, dimensions out of ``sizes``, ranks up to 5 and ordinary attribute values."""
    dtypes = {variable: rng.choice(choices) for variable, choices in schema.dtype_vars.items()}
    length = rng.randint(1, 3)
    known: dict[str, int | Shape] = {}
    inputs: list[Shape | list[Shape] | None] = []
    for argument in schema.inputs:
        if argument.optional and rng.random() < 0.5:
            inputs.append(None)
        elif argument.variadic:
            inputs.append([])
        else:
            inputs.append(_shape(argument, known, rng, sizes, max_elements))
    for _ in range(length if schema.has_lists else 0):
        here = dict(known)
        for argument, shapes in zip(schema.inputs, inputs, strict=True):
            if isinstance(shapes, list):
                shapes.append(_shape(argument, here, rng, sizes, max_elements))
    attributes: dict[str, AttributeValue] = {item.name: DTYPES[dtypes[item.type]] for item in schema.dtype_attributes}
    for attribute in schema.attributes:
        if attribute.choices:
            continue
        values = _VALUES[attribute.scalar_type]
        if attribute.default is not None and rng.random() < 0.5:
            attributes[attribute.name] = attribute.default
        elif attribute.is_list:
            attributes[attribute.name] = tuple(rng.choices(values, k=rng.randint(0, 3)))  # type: ignore[arg-type]
        else:
            attributes[attribute.name] = rng.choice(values)
    return Call(schema, dtypes, tuple(inputs), attributes)


def resized(call: Call, shape: Shape, dims: Mapping[str, int] | None = None) -> Call:
    """The call with the first input of this shape, and all that shares its dimensions; for schemas without lists.

    Args:
      dims: other dimensions, by name.

    Raises ValueError when the shape does not fit the first input.
    """
    first = call.schema.inputs[0]
    rest = len(shape) - (len(first.dims) - 1)
    if rest < 0 or (REST not in first.dims and len(shape) != len(first.dims)):
        raise ValueError(f"{list(shape)} does not fit {first}")
    known: dict[str, int | Shape] = {**(dims or {})}
    axis = 0
    for dim in first.dims:
        if dim == REST:
            known[REST] = shape[axis : axis + rest]
        elif one := named(dim):
            known[one[0]] = shape[axis] - one[1]
        axis += rest if dim == REST else 1
    rng = random.Random(0)
    inputs = tuple(
        None if given is None else _shape(argument, known, rng, SIZES, 1 << 62)
        for argument, given in zip(call.schema.inputs, call.inputs, strict=True)
    )
    return Call(call.schema, call.dtypes, inputs, call.attributes)


def _shape(
    argument: Argument, known: dict[str, int | Shape], rng: random.Random, sizes: Sequence[int], max_elements: int
) -> Shape:
    """A shape that agrees with ``known``, which learns the rest of it."""
    shape: list[int] = []

    def extend(size: int | None = None) -> int:
        room = max_elements
        for one in shape:
            room //= max(1, one)
        shape.append(rng.choice([size for size in sizes if size <= room] or [1]) if size is None else size)
        return shape[-1]

    for dim in argument.dims:
        if dim == REST:
            rest = known.get(REST, (None,) * rng.randint(0, 6 - len(argument.dims)))
            known[REST] = tuple(extend(size) for size in rest)  # type: ignore[union-attr]
        elif isinstance(dim, int):
            extend(dim)
        else:
            name, shift = named(dim) or ("", 0)
            if name not in known:
                known[name] = max(0, extend() - shift)
                shape.pop()
            extend(max(0, known[name] + shift))  # type: ignore[operator]
    return tuple(shape)
