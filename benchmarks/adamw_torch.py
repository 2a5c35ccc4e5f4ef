"""The optimizers of adamw.py in PyTorch, in a process of its own: reads lines ``DTYPE MASTERS MATRICES WAY``, updates.

It runs under another interpreter, since PyTorch and TensorFlow are seldom installed side by side.
"""

import sys

import torch


def updater(dtype, masters, matrices, way):
    torch.manual_seed(0)
    values = [torch.randn(1024, 1024) for _ in range(matrices)]
    dtype = getattr(torch, dtype)
    low = [value.to(dtype) for value in values]
    gradients = [value.to(dtype) for value in values]
    weights = [torch.nn.Parameter(value.clone()) for value in (values if masters else low)]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.float() if masters else gradient
    optimizer = torch.optim.AdamW(weights, 1e-3, **{way: True})

    @torch.no_grad()
    def run():
        if masters:
            torch._foreach_copy_([weight.grad for weight in weights], gradients)
        optimizer.step()
        if masters:
            torch._foreach_copy_(low, [weight.data for weight in weights])

    return run


def main():
    sys.stdin.readline()
    print(torch.__version__, flush=True)
    updaters = {}
    for line in sys.stdin:
        dtype, masters, matrices, way = line.split()
        if line not in updaters:
            updaters = {key: run for key, run in updaters.items() if key.split()[:3] == line.split()[:3]}
            updaters[line] = updater(dtype, masters == "1", int(matrices), way)
        updaters[line]()
        print("done", flush=True)


if __name__ == "__main__":
    main()
