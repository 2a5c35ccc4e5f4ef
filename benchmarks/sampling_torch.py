"""PyTorch's part of sampling.py, in a process of its own: reads ``NAME SIZE``, answers with seconds."""

import functools
import sys
import time
from typing import NamedTuple

import numpy as np


class Work(NamedTuple):
    """A call of grid_sample: batch and channels, whether points lie anywhere, options."""

    batch: int
    channels: int
    mode: str = "bilinear"
    padding: str = "zeros"
    gradients: bool = False
    scattered: bool = False
    volume: bool = False


WORK = {
    "bilinear, 8x3": Work(8, 3),
    "bilinear, 1x64": Work(1, 64),
    "nearest, 8x3": Work(8, 3, "nearest", "border"),
    "bicubic, 8x3": Work(8, 3, "bicubic", "reflection"),
    "scattered, 8x3": Work(8, 3, scattered=True),
    "trilinear, 2x8": Work(2, 8, volume=True),
    "gradients, 8x3": Work(8, 3, gradients=True),
    "gradients, 1x64": Work(1, 64, gradients=True),
    "gradients, 1x3": Work(1, 3, gradients=True),
    "gradients, scattered, 8x3": Work(8, 3, gradients=True, scattered=True),
    "gradients, bicubic, 8x3": Work(8, 3, "bicubic", gradients=True),
    "gradients, trilinear, 2x8": Work(2, 8, volume=True, gradients=True),
}


def arrays(name, size):
    """Images, grid and the gradient of the result, channels last."""
    work, rng = WORK[name], np.random.default_rng(0)
    sizes = (max(2, size // 8),) * 3 if work.volume else (size, size)
    shape = (work.batch, *sizes, work.channels)
    dims = len(sizes)
    if work.scattered:
        grid = rng.uniform(-1, 1, (work.batch, *sizes, dims))
    else:
        axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in sizes), indexing="ij")[::-1]
        x, y, *rest = axes
        cos, sin = np.cos(0.35), np.sin(0.35)
        grid = np.stack([cos * x - sin * y, sin * x + cos * y, *rest], axis=-1)
        grid = np.repeat(grid[None], work.batch, axis=0)
    return rng.standard_normal(shape).astype("f"), grid.astype("f"), rng.standard_normal(shape).astype("f")


@functools.lru_cache(maxsize=1)
def tensors(name, size):
    import torch

    images, grid, dy = arrays(name, size)
    first = [torch.from_numpy(np.ascontiguousarray(np.moveaxis(one, -1, 1))) for one in (images, dy)]
    return first[0], torch.from_numpy(grid), first[1]


def seconds(name, size):
    import torch
    from torch.nn import functional

    work = WORK[name]
    images, grid, dy = tensors(name, size)
    if not work.gradients:
        with torch.no_grad():
            start = time.perf_counter()
            functional.grid_sample(images, grid, work.mode, work.padding, False)
            return time.perf_counter() - start
    images, grid = (one.detach().requires_grad_() for one in (images, grid))
    start = time.perf_counter()
    y = functional.grid_sample(images, grid, work.mode, work.padding, False)
    torch.autograd.grad(y, [images, grid], dy)
    return time.perf_counter() - start


def main():
    import torch

    print(torch.__version__, flush=True)
    for line in sys.stdin:
        name, size = line.rsplit(maxsplit=1)
        print(seconds(name, int(size)), flush=True)


if __name__ == "__main__":
    main()
