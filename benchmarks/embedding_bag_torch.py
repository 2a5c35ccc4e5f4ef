"""PyTorch's part of embedding_bag.py, in its own process: reads ``WHAT ROWS DEPTH BAGS IDS``, answers with seconds."""

import functools
import sys
import time

import torch


@functools.lru_cache(maxsize=1)
def made(rows, depth, bags, each):
    torch.manual_seed(0)
    module = torch.nn.EmbeddingBag(rows, depth, mode="sum", sparse=True)
    optimizer = torch.optim.SparseAdam(module.parameters(), lr=1e-3)
    ids, borders = torch.randint(0, rows, (bags * each,)), torch.arange(0, bags * each, each)
    return module, optimizer, ids, borders


def main():
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        what, *sizes = line.split()
        module, optimizer, ids, borders = made(*map(int, sizes))
        module.weight.grad = None
        start = time.perf_counter()
        if what == "forward":
            with torch.no_grad():
                module(ids, borders)
        else:
            y = module(ids, borders)
            y.backward(y.detach())
        if what == "step":
            optimizer.step()
        print(time.perf_counter() - start, flush=True)


main()
