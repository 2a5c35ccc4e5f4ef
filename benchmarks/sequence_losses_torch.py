"""PyTorch's part of sequence_losses.py, in a process of its own: reads ``LOSS SIZES…``, answers with seconds."""

import functools
import sys
import time

import torch
from torch.nn import functional


def ctc(batch, time_, classes, labels):
    logits = torch.randn(batch, time_, classes, requires_grad=True)
    given = torch.randint(1, classes, [batch, labels])
    frames, counts = torch.full([batch], time_), torch.full([batch], labels)

    def loss():
        log_probs = functional.log_softmax(logits, -1).transpose(0, 1)
        return functional.ctc_loss(log_probs, given, frames, counts, reduction="sum")

    return [logits], loss


LOSSES = {"ctc": ctc}


@functools.lru_cache(maxsize=1)
def given(name, *sizes):
    torch.manual_seed(0)
    return LOSSES[name](*sizes)


def main():
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        name, *sizes = line.split()
        floating, loss = given(name, *map(int, sizes))
        start = time.perf_counter()
        torch.autograd.grad(loss(), floating)
        print(time.perf_counter() - start, flush=True)


main()
