"""Torchvision's part of detection.py, in a process of its own: reads ``DIVISOR NAME``, answers with seconds."""

import functools
import sys
import time

import numpy as np
import torch
import torchvision
from detection_work import BINS, NMS, RATIO, ROIS, SCALE, THRESHOLD, inputs


@functools.lru_cache(maxsize=1)
def tensors(name, divisor):
    found = {}
    for key, array in inputs(name, divisor).items():
        axes = (3, 2, 0, 1) if key == "weight" else (0, 3, 1, 2) if array.ndim == 4 else range(array.ndim)
        found[key] = torch.tensor(np.ascontiguousarray(array.transpose(*axes)))
    return found


def run(name, given):
    ops = torchvision.ops
    if name in NMS:
        return ops.batched_nms(given["boxes"], given["scores"], given["classes"], THRESHOLD)
    if name in ROIS:
        rois = torch.cat([given["indices"][:, None].float(), given["boxes"]], 1)
        features = given["features"].requires_grad_()
        if name == "roi_align":
            y = ops.roi_align(features, rois, BINS, SCALE, RATIO, True)
        else:
            y = ops.roi_pool(features, rois, BINS, SCALE)
        return torch.autograd.grad(y, features, given["upstream"])
    wanted = [given[key].requires_grad_() for key in ("x", "offset", "weight", "bias", "mask")]
    x, offset, weight, bias, mask = wanted
    y = ops.deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)
    return torch.autograd.grad(y, wanted, given["upstream"])


def main():
    print(torchvision.__version__, flush=True)
    for line in sys.stdin:
        divisor, name = line.strip().split(" ", 1)
        given = tensors(name, int(divisor))
        start = time.perf_counter()
        run(name, given)
        print(time.perf_counter() - start, flush=True)


main()
