"""What flash_attention and fused_linear_cross_entropy need of memory beside the same in TensorFlow and PyTorch.

    python benchmarks/memory.py [--torch /path/to/python]

Forward and backward pass, in float32. Each figure comes from a process of its own: the peak of its resident memory over
what it had with the inputs in place (and, of the same operations, a small call behind it). Results, gradients too, are
counted. The peak is reset by /proc/self/clear_refs, so this runs on Linux.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ATTENTION = ("1x4096x8x64", "1x8192x8x64")  # batch, length, heads, depth; causal
CROSS_ENTROPY = ("512x256x32000", "2048x512x50000", "4096x512x128256")  # tokens, depth, classes
SMALL = {4: (1, 32, 2, 16), 3: (8, 16, 100)}
CANDIDATES = ("ours", "TensorFlow, graph", "TensorFlow, XLA", "PyTorch")
MOST = 16e9  # bytes of the plain computation's scores or logits; more is not tried


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def tensorflow(candidate: str, sizes: tuple[int, ...]) -> None:
    """Runs it once; the inputs are made before the peak is reset."""
    import attention
    import cross_entropy
    import tensorflow as tf

    if len(sizes) == 3:
        both, inputs = cross_entropy.CANDIDATES[candidate](), cross_entropy.tensors(*sizes, "float32")
    else:
        both, inputs = attention.with_gradients(candidate), [tf.random.normal(sizes) for _ in range(4)]
    measured(lambda: tf.nest.flatten(both(*inputs))[-1].numpy())


def pytorch(sizes: tuple[int, ...]) -> None:
    import torch
    from torch.nn import functional

    if len(sizes) == 3:
        tokens, depth, classes = sizes
        inputs = [torch.randn(tokens, depth).requires_grad_(), torch.randn(classes, depth).requires_grad_()]
        labels = torch.randint(classes, [tokens])
        run = lambda: torch.autograd.grad(functional.cross_entropy(functional.linear(*inputs), labels), inputs)  # noqa: E731
    else:
        q, k, v, d_o = (torch.randn(sizes).transpose(1, 2).requires_grad_() for _ in range(4))
        attend = functional.scaled_dot_product_attention
        run = lambda: torch.autograd.grad(attend(q, k, v, is_causal=True), [q, k, v], d_o)  # noqa: E731
    measured(run)


def measured(run: Callable[[], Any]) -> None:
    """Prints by how many bytes a call's peak exceeds what the process has now."""
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed is there for what comes
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    print(resident("VmHWM") - before, flush=True)


def child(candidate: str, sizes: tuple[int, ...]) -> None:
    for one in (SMALL[len(sizes)], sizes):
        if candidate == "PyTorch":
            pytorch(one)
        else:
            tensorflow(candidate, one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    parser.add_argument("--child", nargs=2, metavar=("CANDIDATE", "SIZES"), help="only this, in bytes")
    options = parser.parse_args()
    if options.child:
        child(options.child[0], tuple(map(int, options.child[1].split("x"))))
        return
    import results

    where = results.machine()
    figures: dict[tuple[str, str], list[float]] = {}
    for name in (*ATTENTION, *CROSS_ENTROPY):
        sizes = tuple(map(int, name.split("x")))
        held = 4.0 * (sizes[1] ** 2 * sizes[2] if len(sizes) == 4 else sizes[0] * sizes[2])
        label = f"{'attention, causal' if len(sizes) == 4 else 'linear + cross-entropy'}, {name}"
        figures["scores or logits", label] = [held / 1e6]
        for candidate in CANDIDATES:
            python = options.torch if candidate == "PyTorch" else sys.executable
            plain = candidate.startswith("TensorFlow") or (candidate == "PyTorch" and len(sizes) == 3)
            if python is None or (plain and 4 * held > MOST):
                continue
            command = [python, __file__, "--child", candidate, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures[candidate, label] = [int(done.stdout.split()[-1]) / 1e6]
            print(f"{label:44s} {candidate:20s} {figures[candidate, label][0]:9.1f} MB", flush=True)
    results.save("memory", figures, "MB", where)


if __name__ == "__main__":
    main()
