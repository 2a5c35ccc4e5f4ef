"""PyTorch's part of attention.py, in a process of its own: reads ``LENGTH CAUSAL DTYPE``, answers with seconds."""

import functools
import sys
import time

import torch
from torch.nn import functional

HEADS, DEPTH = 8, 64


@functools.lru_cache(maxsize=1)
def tensors(length, dtype):
    torch.manual_seed(0)
    q, k, v, d_o = (torch.randn(1, length, HEADS, DEPTH).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(4))
    return [one.requires_grad_() for one in (q, k, v)], d_o


def main():
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        length, causal, dtype = line.split()
        inputs, d_o = tensors(int(length), dtype)
        start = time.perf_counter()
        o = functional.scaled_dot_product_attention(*inputs, is_causal=causal == "True")
        torch.autograd.grad(o, inputs, d_o)
        print(time.perf_counter() - start, flush=True)


main()
