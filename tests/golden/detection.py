"""Makes detection.npz: what torchvision's detection ops give, values and gradients, on the CPU.

    python tests/golden/detection.py        # needs torch and torchvision; written by torchvision 0.29.1

Tests read it, so that they need neither. Inputs are kept beside the outputs, in torchvision's layout and float32.
Keys are ``op.case.name``; ``d_…`` are gradients by the input of that name for the output gradient ``upstream``.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision

found: dict[str, np.ndarray] = {}


def record(key, function, inputs, **constants):
    """Calls the function with tensors; those of floats are differentiated."""
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    for tensor in tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    y = function(**tensors)
    upstream = torch.tensor(np.random.default_rng(5).standard_normal(y.shape).astype(np.float32))
    gradients = torch.autograd.grad(y, list(tensors.values()), upstream)
    found.update({f"{key}.{name}": value for name, value in (inputs | constants).items()})
    found.update({f"{key}.y": y.detach().numpy(), f"{key}.upstream": upstream.numpy()})
    found.update({f"{key}.d_{name}": value.numpy() for name, value in zip(tensors, gradients, strict=True)})


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def boxes(seed, n, width, height):
    """[n, 4]; most inside of a picture of this size, some beyond it, some turned around."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.2, 0.9, (n, 2)) * [width, height]
    sizes = rng.uniform(-0.1, 0.6, (n, 2)) * [width, height]
    return np.concatenate([corners, corners + sizes], 1).astype(np.float32)


def nms():
    rng = np.random.default_rng(0)
    # More than 1000 boxes: with fewer, torchvision moves classes apart by an offset, which costs digits.
    given, scores, classes = (
        np.abs(boxes(0, 1200, 60, 60)),
        rng.random(1200).astype(np.float32),
        rng.integers(0, 3, 1200),
    )
    scores[::7] = scores[0]
    for threshold in (0.0, 0.1, 0.5, 0.9):
        kept = torchvision.ops.batched_nms(*map(torch.tensor, (given, scores, classes)), threshold)
        found[f"batched_nms.{threshold}.kept"] = kept.numpy().astype(np.int32)
    found.update({"batched_nms.boxes": given, "batched_nms.scores": scores, "batched_nms.classes": classes})


def roi_align():
    features, given, images = normal(1, 2, 5, 11, 13), boxes(2, 9, 13, 11), np.arange(9) % 2
    for number, (size, scale, ratio, aligned) in enumerate(
        [
            ((3, 2), 1.0, -1, True),
            ((2, 4), 0.5, 2, False),
            ((5, 5), 1.7, 0, True),
            ((1, 1), 1.0, 3, True),
            ((4, 3), 0.8, -1, False),
        ]
    ):

        def function(features, size=size, scale=scale, ratio=ratio, aligned=aligned):
            rois = torch.tensor(np.concatenate([images[:, None], given], 1).astype(np.float32))
            return torchvision.ops.roi_align(features, rois, size, scale, ratio, aligned)

        options = np.array([*size, scale, ratio, aligned])
        record(f"roi_align.{number}", function, {"features": features}, boxes=given, images=images, options=options)


def roi_pool():
    features, given, images = normal(3, 2, 4, 9, 12), boxes(4, 8, 12, 9), np.arange(8) % 2
    for number, (size, scale) in enumerate([((3, 2), 1.0), ((2, 5), 0.5), ((7, 7), 1.3)]):

        def function(features, size=size, scale=scale):
            rois = torch.tensor(np.concatenate([images[:, None], given], 1).astype(np.float32))
            return torchvision.ops.roi_pool(features, rois, size, scale)

        options = np.array([*size, scale])
        record(f"roi_pool.{number}", function, {"features": features}, boxes=given, images=images, options=options)


def deform_conv2d():
    for number, case in enumerate([
        (2, 4, 6, 1, 1, (3, 3), (1, 1), (1, 1), (1, 1), True, True),
        (1, 8, 4, 2, 4, (3, 2), (2, 1), (2, 0), (1, 2), True, False),
        (2, 6, 3, 3, 2, (1, 3), (1, 2), (0, 3), (2, 1), False, True),
        (1, 6, 4, 2, 3, (2, 2), (2, 2), (1, 1), (2, 2), False, False),
    ]):  # fmt: skip
        batch, channels, out, groups, offset_groups, kernel, stride, padding, dilation, mask, bias = case
        height, width = 9, 8
        size = [
            (length + 2 * p - d * (k - 1) - 1) // s + 1
            for length, p, d, k, s in zip((height, width), padding, dilation, kernel, stride, strict=True)
        ]
        points = offset_groups * kernel[0] * kernel[1]
        inputs = {
            "x": normal(6, batch, channels, height, width),
            "offset": 2 * normal(7, batch, 2 * points, *size),
            "weight": normal(8, out, channels // groups, *kernel),
        }
        inputs |= {"mask": np.abs(normal(9, batch, points, *size))} if mask else {}
        inputs |= {"bias": normal(10, out)} if bias else {}

        def function(x, offset, weight, mask=None, bias=None, s=stride, p=padding, d=dilation):
            return torchvision.ops.deform_conv2d(x, offset, weight, bias, s, p, d, mask)

        options = np.array([*stride, *padding, *dilation])
        record(f"deform_conv2d.{number}", function, inputs, options=options)


nms()
roi_align()
roi_pool()
deform_conv2d()
np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
