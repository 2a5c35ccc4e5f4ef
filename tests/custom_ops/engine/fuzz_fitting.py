"""Random calls that most kernels take: what schemas do not say of sizes, ids, labels, lengths and attributes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from fuzz_values import as_shapes

from tftoolkit.custom_ops.engine import sampling

SEQUENCES = tuple(f"{name}{end}" for name in ("CtcLoss", "RnntLoss", "RnntLossAdditive") for end in ("", "Grad"))


def fitting_call(call: sampling.Call, name: str, rng: random.Random) -> sampling.Call:
    """The call, with shapes and attributes that the op ``name`` takes."""
    if name in SEQUENCES:
        return _sequences(call, name, rng)
    if name.startswith("DeformConv2d"):
        return _convolution(call, rng)
    if name.startswith("Crf"):
        return _chains(call, rng)
    if name.startswith("FlashAttention") and rng.random() < 0.8:
        return _heads(call, rng)
    if name == "FusedLinearCrossEntropyGrad" and rng.random() < 0.8:
        return replace(_with_dims(call, biases=_dim(call, "classes")), attributes={**call.attributes, "biased": True})
    if name == "AdamWRows":
        return replace(call, attributes={**call.attributes, "beta_1": 0.5, "beta_2": 0.25})
    if name.startswith("AdamW"):
        each = (0.5,) * len(as_shapes(call.inputs[3]))  # numbers per weight
        fitting = {"beta_1": 0.5, "beta_2": 0.25, "rate_factors": each, "weight_decays": each}
        return replace(call, attributes={**call.attributes, **fitting})
    return call


def fit_arrays(call: sampling.Call, name: str, arrays: list[Any], rng: random.Random) -> None:
    """Changes whole numbers among the inputs in place, as far as shapes allow."""
    inputs = {argument.name: array for argument, array in zip(call.schema.inputs, arrays, strict=True)}
    if name == "RandAugment":
        arrays[1] %= 14  # there are so many changes
    elif name.startswith("SoftmaxCrossEntropy"):
        arrays[1] %= min(max(1, *arrays[0].shape[-1:], 1), 100)  # as there are classes
    elif name.startswith("FusedLinearCrossEntropy"):
        arrays[3] %= min(max(1, *arrays[1].shape[:1], 1), 100)
    elif name.startswith("EmbeddingBag") and arrays[2].ndim == 1 and rng.random() < 0.9:
        arrays[1] %= min(max(1, *arrays[0].shape[:1], 1), 100)
        _fit_borders(arrays[2], arrays[1].size)
    elif name.startswith("FlashAttentionVarlen") and rng.random() < 0.9:
        for side, rows in (("q", arrays[0]), ("k", arrays[1])):
            _fit_borders(inputs[f"cu_seqlens_{side}"], min(rows.shape[0] if rows.ndim else 0, 1 << 20))
    elif name == "AdamWRows" and rng.random() < 0.9:
        inputs["indices"] %= min(max(1, *inputs["w"].shape[:1], 1), 100)
    elif name.startswith("Crf") and arrays[0].ndim == 3:
        inputs["lengths"] %= min(arrays[0].shape[1] + 1, np.iinfo(np.int32).max) if arrays[0].shape[2] else 1
        if "tags" in inputs:
            inputs["tags"] %= max(1, arrays[0].shape[2])
    elif name.startswith("Roi"):
        _fit_boxes(inputs)
    elif name in SEQUENCES:
        _fit_sequences(arrays, name, call.attributes)


def _sequences(call: sampling.Call, name: str, rng: random.Random) -> sampling.Call:
    """With a blank that is a class, and for ``CtcLoss`` labels of a shape that it takes."""
    inputs = list(call.inputs)
    logits = inputs[0]
    assert isinstance(logits, tuple)
    attributes = {**call.attributes, "blank": rng.randrange(max(1, logits[-1]))}
    if name.startswith("CtcLoss"):
        width = rng.choice((0, 1, 2, 5))
        inputs[1] = (logits[0], width) if rng.random() < 0.5 else (logits[0] * width,)
    return replace(call, inputs=tuple(inputs), attributes=attributes)


def _convolution(call: sampling.Call, rng: random.Random) -> sampling.Call:
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
    return replace(call, inputs=inputs, attributes=known)


def _chains(call: sampling.Call, rng: random.Random) -> sampling.Call:
    """Of few steps, since references take one after the other, and as many states as were drawn."""
    time = rng.choice((0, 1, 2, 3, 5, 9))
    of_places = ("logits", "tags")
    inputs = tuple(
        (shape[0], time, *shape[2:]) if argument.name in of_places and isinstance(shape, tuple) else shape
        for argument, shape in zip(call.schema.inputs, call.inputs, strict=True)
    )
    return replace(call, inputs=inputs)


def _dim(call: sampling.Call, name: str) -> int:
    """How large the dimension of that name is."""
    for argument, shape in zip(call.schema.inputs, call.inputs, strict=True):
        if name in argument.dims and isinstance(shape, tuple):
            return shape[argument.dims.index(name) - len(argument.dims)]
    raise LookupError(f"no input has a dimension {name}")


def _with_dims(call: sampling.Call, **dims: int) -> sampling.Call:
    """The call with other sizes of these dimensions, in inputs whose rank is known."""
    inputs = tuple(
        tuple(dims.get(str(dim), size) for dim, size in zip(argument.dims, shape, strict=True))
        if isinstance(shape, tuple) and len(shape) == len(argument.dims) else shape
        for argument, shape in zip(call.schema.inputs, call.inputs, strict=True)
    )  # fmt: skip
    return replace(call, inputs=inputs)


def _heads(call: sampling.Call, rng: random.Random) -> sampling.Call:
    """As many for the queries as a multiple of those of the keys; biases of one or all."""
    heads = _dim(call, "heads")
    dims = {"kv_heads": rng.choice([size for size in range(1, heads + 1) if heads % size == 0] or [1])}
    dims |= {
        f"bias_{name}": rng.choice((1, _dim(call, name)))
        for name in ("batch", "heads", "queries")
        if any(f"bias_{name}" in argument.dims for argument in call.schema.inputs)
    }
    return _with_dims(call, **dims)


def _fit_borders(borders: np.ndarray, end: int) -> None:
    """They rise from 0 to the end."""
    if borders.ndim == 1:
        borders %= end + 1
        borders.sort()
        borders[:1], borders[-1:] = 0, end


def _fit_boxes(inputs: dict[str, np.ndarray]) -> None:
    """Boxes of pictures that there are; places in them."""
    batch, *pixels, _ = (*inputs["features"].shape, 1, 1)
    inputs["box_indices"] %= min(max(1, batch), 100)
    if "places" in inputs:
        inputs["places"] %= min(max(1, int(np.prod(pixels[:2]))), 100)


def _fit_sequences(arrays: list[Any], name: str, attributes: Mapping[str, Any]) -> None:
    """Changes labels and lengths in place, as far as shapes allow; sums of exponentials are positive."""
    first = 2 if "Additive" in name else 1
    labels, frames, counts = arrays[first : first + 3]
    logits = arrays[0]
    if logits.ndim < 3 or labels.ndim not in (1, 2) or logits.shape[-1] < 2 or frames.ndim != 1 or counts.ndim != 1:
        return
    labels %= min(logits.shape[-1] - 1, 100)
    labels += labels >= attributes["blank"]
    most = np.iinfo(np.int32).max  # where a dimension is beyond it
    frames %= min(logits.shape[1] + 1, most)
    if labels.ndim == 2:
        counts %= min(labels.shape[1] + 1, most)
    elif counts.size:
        counts[:] = labels.size // counts.size
        counts[0] += labels.size % counts.size
    if name.endswith("Grad"):
        arrays[-1][:] = 1 + np.abs(arrays[-1])
