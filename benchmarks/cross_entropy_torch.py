"""PyTorch's part of cross_entropy.py, in a process of its own: reads ``TOKENS DEPTH CLASSES DTYPE``, gives seconds."""

import functools
import sys
import time

import torch
from torch.nn import functional


@functools.lru_cache(maxsize=1)
def tensors(tokens, depth, classes, dtype):
    torch.manual_seed(0)
    inputs, weight = torch.randn(tokens, depth), 0.1 * torch.randn(classes, depth)
    inputs, weight = (x.to(getattr(torch, dtype)) for x in (inputs, weight))
    return [inputs.requires_grad_(), weight.requires_grad_()], torch.randint(classes, [tokens])


def main():
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        inputs, labels = tensors(*map(int, line.split()[:3]), line.split()[3])
        start = time.perf_counter()
        loss = functional.cross_entropy(functional.linear(*inputs), labels)
        torch.autograd.grad(loss, inputs)
        print(time.perf_counter() - start, flush=True)


main()
