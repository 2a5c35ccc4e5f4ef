"""What the fuzzer does with shapes, arrays and outputs."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np

from tftoolkit.custom_ops.engine import sampling, shapes


def changed(rng: random.Random, shape: shapes.Shape) -> shapes.Shape:
    """Another rank, or another size in one place."""
    place = rng.randrange(len(shape) + 1)
    size = rng.choice((0, 1, 2, 3, 7))
    way = rng.randrange(3)
    if way == 0:
        return (*shape[:place], size, *shape[place:])
    return (*shape[:place], *shape[place + 1 :]) if way == 1 else (*shape[:place], size, *shape[place + 1 :])


def largest(array: np.ndarray) -> float:
    """The largest finite magnitude in it; that of whole numbers says nothing."""
    magnitudes = np.abs(array.astype(np.float64)) if array.dtype.kind not in "biu" else np.zeros(0)
    return float(np.max(magnitudes, initial=0, where=np.isfinite(magnitudes)))


def convolution(call: sampling.Call, rng: random.Random) -> sampling.Call:
    """A call of DeformConv2d or its gradient with sizes that fit; few that are drawn one by one do."""
    options = {**call.attributes, "masked": True, "has_dmask": True}
    kernel, in_size = ([rng.choice((1, 2, 3, 5)) for _ in range(2)] for _ in range(2))
    size = []
    for axis, length, extent in zip("yx", in_size, kernel, strict=True):
        stride, padding, dilation = (options[f"{name}_{axis}"] for name in ("stride", "padding", "dilation"))
        size.append(max(0, (length + 2 * padding - dilation * (extent - 1) - 1) // stride + 1))
    groups, offset_groups, batch = rng.choice((1, 2)), rng.choice((1, 2)), rng.choice((0, 1, 2))
    channels, outputs = groups * offset_groups * rng.choice((1, 2, 9)), groups * rng.choice((1, 3, 17))
    points = offset_groups * kernel[0] * kernel[1]
    fitting = {
        "x": (batch, *in_size, channels), "offset": (batch, *size, 2 * points), "mask": (batch, *size, points),
        "weight": (*kernel, channels // groups, outputs), "bias": (outputs,), "dy": (batch, *size, outputs),
    }  # fmt: skip
    inputs = tuple(
        None if given is None else fitting[argument.name]
        for argument, given in zip(call.schema.inputs, call.inputs, strict=True)
    )
    known = {name: value for name, value in options.items() if name in call.attributes}
    return dataclasses.replace(call, inputs=inputs, attributes=known)


def limit_boxes(inputs: dict[str, np.ndarray]) -> None:
    """Boxes of pictures that there are; places in them."""
    batch, *pixels, _ = (*inputs["features"].shape, 1, 1)
    inputs["box_indices"] %= min(max(1, batch), 100)
    if "places" in inputs:
        inputs["places"] %= min(max(1, int(np.prod(pixels[:2]))), 100)


def most_elements(call: sampling.Call) -> int:
    """Of an output. Raises ValueError where the attributes make one impossible."""
    return max(int(np.prod(shape, dtype=object)) for given in call.outputs() for shape in as_shapes(given))


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def as_shapes(given: Any) -> list[shapes.Shape]:
    return given if isinstance(given, list) else [given]


def flat_outputs(outputs: Any) -> list[Any]:
    """Without those that were not asked for."""
    return [item for output in as_list(outputs) for item in as_list(output) if item is not None]
