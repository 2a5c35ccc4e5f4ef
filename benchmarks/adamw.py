"""AdamW of a model's weights, one update, against plain TensorFlow, PyTorch and copying.

    python benchmarks/adamw.py [--rounds=15] [--matrices=8] [--torch=/path/to/python] [--no-save]

The weights are matrices of 1024 x 1024, of float32, of bfloat16, and of bfloat16 with a float32 master; gradients have
the weights' dtype. *ours* is ``trainers.optimizers.AdamW(fused=True)``, *plain* the same without ``fused``. Under XLA
both update the variables where they lie; in a graph TensorFlow gives them new memory in each step. PyTorch's
is ``torch.optim.AdamW(fused=True)`` and ``foreach=True``, in a process of its own; it has no masters, so in their place
stand float32 parameters that are copied to bfloat16 ones (and bfloat16 gradients that are copied to float32) by
``torch._foreach_copy_``. Its moments of bfloat16 weights are bfloat16.

The copy moves the bytes that an update must move (28 per weight for float32, 22 for bfloat16, 30 with masters), on all
cores. All alternatives run in turns, so that a busy machine slows all of them alike.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import results
import tensorflow as tf
from transformer_ops import copy, measure

from tftoolkit import trainers

SIZE = 1024
# Name → dtype of weights and gradients, whether there are masters, bytes that an update must move per weight.
KINDS = {
    "float32": ("float32", False, 28),
    "bfloat16": ("bfloat16", False, 22),
    "bfloat16 with masters": ("bfloat16", True, 30),
}


def update(dtype: str, masters: bool, matrices: int, *, fused: bool, jit: bool | None) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal([SIZE, SIZE], np.float32) for _ in range(matrices)]
    weights = [tf.Variable(tf.cast(value, dtype)) for value in values]
    gradients = [tf.cast(value, dtype) for value in values]
    optimizer = trainers.optimizers.AdamW(1e-3, master_weights=masters, fused=fused)
    optimizer.build(weights)
    step = tf.function(optimizer.step, jit_compile=jit, autograph=False)
    yes = tf.constant(True)

    def run() -> object:
        step(gradients, yes)
        return weights[-1].read_value()[0, 0].numpy()  # waits for the update

    return run


def copy_on_all_cores(bytes_moved: float) -> Callable[[], object]:
    count = os.cpu_count() or 1
    pool, parts = ThreadPoolExecutor(count), [copy(bytes_moved / count) for _ in range(count)]
    return lambda: list(pool.map(lambda part: part(), parts))


class Torch:
    """The child process of adamw_torch.py; ``version`` is PyTorch's."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("adamw_torch.py")
        self._process = subprocess.Popen([python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self.ask("")

    def ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--matrices", type=int, default=8)
    parser.add_argument("--torch", help="an interpreter that has PyTorch")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results.csv as it is")
    options = parser.parse_args()
    where = results.machine()
    torch = Torch(options.torch) if options.torch else None
    figures: dict[tuple[str, str], Any] = {}
    for kind, (dtype, masters, bytes_moved) in KINDS.items():
        moved = bytes_moved * options.matrices * SIZE * SIZE
        alternatives: dict[str, Callable[[], object]] = {
            f"{label}, {mode}": update(dtype, masters, options.matrices, fused=label == "ours", jit=jit)
            for label in ("ours", "plain")
            for mode, jit in (("graph", None), ("XLA", True))
        }
        if torch:
            for way in ("fused", "foreach"):
                line = f"{dtype} {int(masters)} {options.matrices} {way}"
                alternatives[f"PyTorch, {way}"] = lambda line=line: torch.ask(line)
        alternatives["floor (copy)"] = copy_on_all_cores(moved)
        taken = measure(alternatives, options.rounds)
        ours, floor = taken["ours, XLA"], taken["floor (copy)"]
        share = np.median(floor / ours)
        print(f"\n{kind}, {options.matrices} x {SIZE}x{SIZE}, {moved / 1e6:.0f} MB, {share:.0%} of the copy's rate")
        for label, values in taken.items():
            low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
            ratio = np.median(values / ours)
            print(f"  {label:17} {median:8.2f} ms ± {(high - low) / median:4.0%}   {ratio:5.2f} × ours under XLA")
        figures |= {(label, f"{kind}, {options.matrices}x{SIZE}x{SIZE}"): values for label, values in taken.items()}
    if not options.no_save:
        results.save("adamw", figures, "ms", where, **({"torch": torch.version} if torch else {}))


if __name__ == "__main__":
    main()
