"""PyTorch's part of text_gpt.py, in a process of its own.

Reads ``BATCH LENGTH VOCABULARY WIDTH LAYERS HEADS KV_HEADS HIDDEN``, answers with seconds of one training step; then
``memory``, answered with the GB by which a step's peak exceeds what the process had before.
"""

import ctypes
import functools
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional


def rotated(x, cosine, sine):
    one, other = x.chunk(2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads, hidden):
        super().__init__()
        self.size, self.norms = width // heads, nn.ModuleList(nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        linear = functools.partial(nn.Linear, bias=False)
        self.query, self.out = linear(width, width), linear(width, width)
        self.key, self.value = linear(width, kv_heads * self.size), linear(width, kv_heads * self.size)
        self.gate, self.up, self.down = linear(width, hidden), linear(width, hidden), linear(hidden, width)

    def forward(self, x, cosine, sine):
        normed = self.norms[0](x)
        q, k, v = (
            dense(normed).unflatten(-1, (-1, self.size)).transpose(1, 2) for dense in (self.query, self.key, self.value)
        )
        o = functional.scaled_dot_product_attention(
            rotated(q, cosine, sine), rotated(k, cosine, sine), v, is_causal=True, enable_gqa=True
        )
        x = x + self.out(o.transpose(1, 2).flatten(2))
        normed = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    def __init__(self, vocabulary, width, layers, heads, kv_heads, hidden):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm, self.half = nn.RMSNorm(width, eps=1e-6), width // heads // 2

    def forward(self, tokens, labels):
        angles = torch.arange(tokens.shape[1])[:, None] * 10000.0 ** (-torch.arange(self.half) / self.half)
        x, cosine, sine = self.embedding(tokens), angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cosine, sine)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def training_step(batch, length, vocabulary, *sizes):
    torch.manual_seed(0)
    model = Decoder(vocabulary, *sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(0, vocabulary, [batch, length + 1])

    def step():
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def resident(name):
    """VmRSS or VmHWM of this process, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def main():
    print(torch.__version__, flush=True)
    step, known = None, None
    for line in sys.stdin:
        if line.strip() == "memory":
            ctypes.CDLL(None).malloc_trim(0)  # else what was freed is there for what comes
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")
            step()
            print((resident("VmHWM") - before) / 1e9, flush=True)
            continue
        if line != known:
            step, known = training_step(*map(int, line.split())), line
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


main()
