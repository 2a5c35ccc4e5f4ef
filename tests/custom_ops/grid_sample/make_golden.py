"""Writes golden.npz: what PyTorch's grid_sample gives in float64, values and gradients. Needs PyTorch alone.

    python tests/custom_ops/grid_sample/make_golden.py

Made with PyTorch 2.14.1. Names: dims, mode, padding, align_corners, and which array.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional


def inputs(dims):
    rng = np.random.default_rng(dims)
    sizes = (*(2, 4, 5, 6, 2)[: dims + 1], 3)
    points = (2, 3, 2, 5)[: dims + 1]
    images, dy = (rng.standard_normal(shape).astype(np.float32) for shape in (sizes, (*points, 3)))
    grid = rng.uniform(-1.7, 1.7, (*points, dims)).astype(np.float32)  # some outside, reflected twice
    return {"images": images, "grid": grid, "dy": dy}


def first(array):
    return torch.tensor(np.moveaxis(array, -1, 1).astype(np.float64))


def last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1).astype(np.float32)


def main():
    found = {}
    for dims in (2, 3):
        arrays = inputs(dims)
        found |= {f"{dims} {name}": array for name, array in arrays.items()}
        modes = ("nearest", "bilinear", "bicubic")[: 3 if dims == 2 else 2]
        for mode, padding, corners in itertools.product(modes, ("zeros", "border", "reflection"), (False, True)):
            images = first(arrays["images"]).requires_grad_()
            grid = torch.tensor(arrays["grid"].astype(np.float64), requires_grad=True)
            y = functional.grid_sample(images, grid, mode, padding, corners)
            dimages, dgrid = torch.autograd.grad(y, [images, grid], first(arrays["dy"]))
            name = f"{dims} {mode} {padding} {corners}"
            found[f"{name} y"], found[f"{name} dimages"] = last(y), last(dimages)
            found[f"{name} dgrid"] = dgrid.numpy().astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("golden.npz"), **found)


main()
