"""Training steps of the recipe ``text_gpt``: with the compiled ops, with plain TensorFlow, in PyTorch: speed, memory.

    python benchmarks/text_gpt.py [--rounds 7] [--torch PYTHON] [--small]

The recipe's model without dropout, on whole windows: forward, backward, gradients clipped to norm 1, AdamW. With ours
goes the fused AdamW. The candidates run in turn; memory is the peak of a process of its own (without oneDNN) over what
it had before the second step, see memory.py. PyTorch (text_gpt_torch.py) has scaled_dot_product_attention and its fused
AdamW, and runs under another interpreter, where PYTHON has it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import memory
import numpy as np
import plain_ops
import results
import tensorflow as tf
from other_process import OtherProcess

from tftoolkit import custom_ops, models, trainers
from tftoolkit.trainers import recipes

CANDIDATES = {
    "ours, graph": (custom_ops, None),
    "ours, XLA": (custom_ops, True),
    "plain, graph": (plain_ops, None),
    "plain, XLA": (plain_ops, True),
}
TORCH = "PyTorch"


class Step(trainers.Step):
    def __init__(self, model: models.Llama, fused: bool) -> None:
        super().__init__()
        self.model = model
        self.update = trainers.Update(model, trainers.optimizers.AdamW(1e-3, fused=fused), clip_norm=1.0)

    def __call__(self, batch: dict[str, tf.Tensor], key: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = self.model.loss(batch["tokens"], batch["labels"])
        return {"loss": loss, **self.update.apply(tape.gradient(loss, self.update.weights))}


def settings(small: bool) -> tuple[dict[str, int], int, int]:
    """The model's, and batch and length."""
    config = recipes.load("text_gpt")
    names = ("width", "layers", "heads", "kv_heads", "hidden")
    model = {"vocabulary": config.vocabulary, **{name: config.model[name] for name in names}}
    return model, *((2, 64) if small else (config.batch_size, config.length))


def training_step(candidate: str, small: bool) -> Callable[[], float]:
    ops, jit = CANDIDATES[candidate]
    options, batch, length = settings(small)
    step = Step(models.Llama(**options, tied=True, ops=ops), ops is custom_ops)
    tokens = tf.constant(np.random.default_rng(0).integers(0, options["vocabulary"], [batch, length + 1]), tf.int32)
    compiled = tf.function(step, autograph=False, jit_compile=jit)
    given = {"tokens": tokens[:, :-1], "labels": tokens[:, 1:]}
    return lambda: float(compiled(given, tf.zeros([2], tf.int32))["loss"])


def seconds(step: Callable[[], float]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter that has PyTorch")
    parser.add_argument("--small", action="store_true", help="2 windows of 64 tokens; nothing is saved")
    parser.add_argument("--child", metavar="CANDIDATE", help="only this one's memory, in bytes")
    options = parser.parse_args()
    if options.child:
        step = training_step(options.child, options.small)
        step()  # what is made once (the trace, XLA's program, the ops' threads) isn't the step's
        memory.measured(step)
        return
    where = results.machine()
    model, batch, length = settings(options.small)
    steps = {name: training_step(name, options.small) for name in CANDIDATES}
    timed = {name: lambda step=step: seconds(step) for name, step in steps.items()}
    if options.torch:
        torch = OtherProcess(options.torch, "text_gpt_torch.py")
        timed[TORCH] = lambda: torch.run(batch, length, *model.values())
    found: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(options.rounds + 2):
        for name, run in timed.items():
            taken = run()
            if number >= 2:
                found[name].append(taken)
    peaks = {}
    for name in CANDIDATES:
        command = [sys.executable, __file__, "--child", name, *["--small"] * options.small]
        # oneDNN has a pool of its own, which after the first step has all that the second one needs.
        environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[name] = int(done.stdout.split()[-1]) / 1e6
    if options.torch:
        peaks[TORCH] = 1e3 * torch.run("memory")  # it answers in GB
    for name, values in found.items():
        rates = [batch * length / value for value in values]
        spread = f"({min(rates):,.0f}–{max(rates):,.0f})"
        print(f"{name:14s} {statistics.median(rates):8,.0f} {spread} tokens/s; {peaks[name]:,.0f} MB")
    if not options.small:
        versions = {"torch": torch.version} if options.torch else {}
        times = {(name, "step"): [1e3 * one for one in values] for name, values in found.items()}
        results.save("text_gpt", times, "ms", where, **versions)
        results.save("text_gpt", {(name, "memory"): [value] for name, value in peaks.items()}, "MB", where, **versions)


if __name__ == "__main__":
    main()
