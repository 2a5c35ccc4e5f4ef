"""The models of runners.py in PyTorch, in a process of their own: reads ``MODEL MODE STEPS``, answers with seconds.

It runs under another interpreter, since PyTorch and TensorFlow are seldom installed side by side.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm attention and MLP, as in runners.py."""

    def __init__(self, width, heads):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


def model_and_batch(name):
    torch.manual_seed(0)
    if name.startswith("mlp"):
        layers = [nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
        return nn.Sequential(*layers), torch.randn(32, 784), torch.randint(10, [32])
    if name == "cnn":
        layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1568, 10)]
        return nn.Sequential(*layers), torch.randn(64, 1, 28, 28), torch.randint(10, [64])
    blocks = [Block(64, 4), Block(64, 4)]
    model = nn.Sequential(nn.Embedding(256, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 256))
    return model, torch.randint(256, [8, 64]), torch.randint(256, [8, 64])


def candidate(name, mode):
    model, x, y = model_and_batch(name)
    kind = torch.optim.SGD if name.endswith("sgd") else torch.optim.AdamW
    optimizer = kind(model.parameters(), 1e-3)

    def loss_of(x, y):
        logits = model(x)
        return functional.cross_entropy(logits.flatten(0, -2), y.flatten())

    loss_of = torch.compile(loss_of) if mode == "compile" else loss_of

    def run(steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of(x, y)
            loss.backward()
            optimizer.step()
        return loss.item()

    return run


def main():
    print(torch.__version__, flush=True)
    candidates = {}
    for line in sys.stdin:
        name, mode, steps = line.split()
        if (name, mode) not in candidates:
            candidates[name, mode] = candidate(name, mode)
            candidates[name, mode](5)
        begin = time.perf_counter()
        candidates[name, mode](int(steps))
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
