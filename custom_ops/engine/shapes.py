"""Output shapes by a schema, for hosts other than TensorFlow (whose C++ counterpart is host/signature.cc)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tftoolkit.custom_ops.engine.schema import REST, Argument, Dim, Expression, Schema, named, presence

Shape = tuple[int, ...]
_LARGEST = 2**63 - 1


def output_shapes(
    schema: Schema, inputs: Sequence[Shape | Sequence[Shape] | None], integers: Mapping[str, int]
) -> list[Shape | list[Shape]]:
    """Checks the inputs' shapes and computes those of the outputs, a list for each list.

    Args:
      inputs: a shape for each input, a sequence of shapes for ``*name``, None for an absent ``name?``.
      integers: values of the integer and bool attributes.

    Raises ValueError that names argument and dimension.
    """
    known: dict[str, tuple[int | Shape, str]] = {}  # value, and the argument that said so
    lists: list[tuple[Argument, Sequence[Shape]]] = []
    for argument, shape in zip(schema.inputs, inputs, strict=True):
        if argument.variadic:
            lists.append((argument, shape))  # type: ignore[arg-type]
        elif shape is not None:
            _bind(schema, argument, tuple(shape), known)  # type: ignore[arg-type]
    outputs: list[Shape | list[Shape]] = [
        [] if output.variadic else _shape(schema, output, known, integers) for output in schema.outputs
    ]
    for place in range(len(lists[0][1]) if lists else 0):
        here = dict(known)
        for argument, shapes in lists:
            _bind(schema, argument, tuple(shapes[place]), here)
        for output, listed in zip(schema.outputs, outputs, strict=True):
            if isinstance(listed, list):
                listed.append(_shape(schema, output, here, integers))
    return outputs


def _bind(schema: Schema, argument: Argument, shape: Shape, known: dict[str, tuple[int | Shape, str]]) -> None:
    listed = len(argument.dims) - (REST in argument.dims)
    if len(shape) < listed or (REST not in argument.dims and len(shape) != listed):
        least = "at least " if REST in argument.dims else ""
        raise _mismatch(schema, argument, shape, f"must have {least}{listed} dimension{'s' * (listed != 1)}")
    rest = len(shape) - listed
    axis = 0
    for dim in argument.dims:
        found = shape[axis : axis + rest] if dim == REST else shape[axis]
        axis += rest if dim == REST else 1
        if isinstance(dim, int):
            if found != dim:
                raise _mismatch(schema, argument, shape, f"a dimension of it must be {dim}")
            continue
        if isinstance(found, tuple):
            expected, source = known.setdefault(REST, (found, argument.name))
            if found != expected:
                reason = f"its dimensions ... must be {list(expected)} as in {source}"  # type: ignore[arg-type]
                raise _mismatch(schema, argument, shape, reason)
            continue
        name, shift = named(dim) or ("", 0)
        if found < shift:
            raise _mismatch(schema, argument, shape, f"its dimension {dim} must be at least {shift}")
        expected, source = known.setdefault(name, (found - shift, argument.name))
        if found - shift != expected:
            wanted = expected + shift  # type: ignore[operator]
            raise _mismatch(schema, argument, shape, f"its dimension {dim} must be {wanted} as in {source}")


def _shape(
    schema: Schema, output: Argument, known: Mapping[str, tuple[int | Shape, str]], integers: Mapping[str, int]
) -> Shape:
    if output.optional and not integers.get(presence(output)):
        return (0,)
    sizes = {name: value for name, (value, _) in known.items() if isinstance(value, int)} | dict(integers)
    shape: list[int] = []
    for dim in output.dims:
        if dim == REST:
            rest = known[REST][0]
            assert isinstance(rest, tuple)
            shape += rest
        else:
            shape.append(_size(schema, output, dim, sizes))
    return tuple(shape)


def _size(schema: Schema, output: Argument, dim: Dim, sizes: Mapping[str, int]) -> int:
    where = f"a dimension of output {output.name}"
    try:
        size = dim.evaluate(sizes) if isinstance(dim, Expression) else dim if isinstance(dim, int) else sizes[dim]
    except ValueError as error:
        raise ValueError(f"{where}: {error}; the signature is {schema}") from None
    if not 0 <= size <= _LARGEST:
        raise ValueError(f"{where} would be {size}; the signature is {schema}")
    return size


def _mismatch(schema: Schema, argument: Argument, shape: Shape, reason: str) -> ValueError:
    return ValueError(f"{argument.name} has shape {list(shape)}, but {reason}; the signature is {schema}")
