"""The built-in CUDA kernels through JAX: parity with the formula, then speed against plain XLA, PyTorch and Triton.

Needs JAX and, to compile the kernels, nvcc; no TensorFlow. What is not installed is left out and said. Without a GPU it
runs on the CPU: parity holds there too, and the table says so. Usage: python benchmarks/gpu.py [rounds] > gpu.csv
"""

import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tftoolkit import custom_ops
from tftoolkit.custom_ops.rms_norm.cases import BENCHMARK, CASES, Case

EPSILON = 1e-5


def plain(x: jax.Array, gamma: jax.Array) -> jax.Array:
    """What one writes without the op; computes in float32 as the kernel does."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + EPSILON)
    return (normed * gamma.astype(jnp.float32)).astype(x.dtype)


def ours(x: jax.Array, gamma: jax.Array) -> jax.Array:
    return custom_ops.rms_norm(x, gamma, EPSILON)


def training(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Forward and backward as one compiled function."""

    def run(x: jax.Array, gamma: jax.Array, dy: jax.Array) -> Any:
        y, pull = jax.vjp(function, x, gamma)
        return y, *pull(dy)

    return jax.jit(run)


def arguments(case: Case) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    shapes = (case.shape, case.shape[-1:], case.shape)
    return [jnp.asarray(rng.standard_normal(shape), case.dtype) for shape in shapes]


def check_parity() -> None:
    """Every case of the table: at most twice the error of the plain computation, against float64."""
    for case in CASES:
        if 0 in case.shape:
            continue
        given = arguments(case)
        x, gamma, dy = (np.asarray(value, np.float64) for value in given)
        inv = 1 / np.sqrt(np.mean(x * x, -1, keepdims=True) + EPSILON)
        dot = np.sum(dy * gamma * x, -1, keepdims=True)
        exact = [x * inv * gamma, dy * gamma * inv - x * inv**3 / x.shape[-1] * dot, dy * x * inv]
        exact[2] = exact[2].reshape(-1, x.shape[-1]).sum(0)
        for one, naive, right in zip(training(ours)(*given), training(plain)(*given), exact, strict=True):
            error, budget = (np.abs(np.asarray(value, np.float64) - right).max() for value in (one, naive))
            terms = max(np.abs(right).max(), np.abs(dy * gamma * inv).max())  # dx is a difference of terms of this size
            assert error <= 2 * budget + 2.0**-22 * terms, (case, error, budget)
    print(f"parity: {len(CASES)} cases on {jax.devices()[0].device_kind}", file=sys.stderr)


def torch_variants(case: Case) -> dict[str, Callable[[], None]]:
    """torch.nn.functional.rms_norm, eager and compiled (Triton)."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.shape, device=device, dtype=dtype, requires_grad=True)
    gamma = torch.randn(case.shape[-1:], device=device, dtype=dtype, requires_grad=True)
    dy = torch.randn(case.shape, device=device, dtype=dtype)

    def run(function: Callable[..., Any]) -> Callable[[], None]:
        def call() -> None:
            y = function(x, case.shape[-1:], gamma, EPSILON)
            torch.autograd.grad(y, (x, gamma), dy)
            if device == "cuda":
                torch.cuda.synchronize()

        return call

    functions = {"torch": torch.nn.functional.rms_norm}
    if importlib.util.find_spec("triton") is not None and device == "cuda":
        functions["torch.compile (Triton)"] = torch.compile(torch.nn.functional.rms_norm)
    return {name: run(function) for name, function in functions.items()}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    check_parity()
    table = csv.writer(sys.stdout)
    table.writerow(["device", "case", "variant", "median_us", "spread_us", "ratio_to_ours", "GB_per_s"])
    for case in BENCHMARK:
        given = arguments(case)
        variants: dict[str, Callable[[], None]] = {}
        for name, function in (("ours", training(ours)), ("XLA", training(plain))):
            variants[name] = lambda function=function, given=given: jax.block_until_ready(function(*given))
        variants |= torch_variants(case)
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 5):
            for name, call in variants.items():
                start = time.perf_counter()
                call()
                if number >= 5:
                    seconds[name].append(time.perf_counter() - start)
        moved = 5 * given[0].size * given[0].dtype.itemsize  # x, y; dy, x, dx
        base = statistics.median(seconds["ours"])
        for name, values in seconds.items():
            low, median, high = statistics.quantiles(values, n=4)
            row = [jax.devices()[0].device_kind, "x".join(map(str, case.shape)) + " " + case.dtype, name]
            table.writerow([*row, f"{median * 1e6:.1f}", f"{(high - low) * 1e6:.1f}", f"{median / base:.2f}",
                            f"{moved / median / 1e9:.1f}"])  # fmt: skip


if __name__ == "__main__":
    main()
