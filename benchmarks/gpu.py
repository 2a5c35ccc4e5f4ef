"""The built-in CUDA kernels through JAX: parity with float64, then speed against plain XLA, PyTorch and Triton.

Needs JAX and, to compile the kernels, nvcc; no TensorFlow, no network. What is not installed is left out. Without a GPU
it runs on the CPU, on small inputs: parity holds there too, and the table says so. Prints CSV, a row for each op, shape
and dtype: microseconds of forward and backward together (medians; rivals take turns), the spread of ours, what part of
the rate of copying the same bytes ours reaches, and by how much it may err before it errs more than twice as much as
the formula in float32 (at most 1).

    python benchmarks/gpu.py [--rounds=50] [--ops=swiglu,geglu] [--no-parity] > gpu.csv
"""

import argparse
import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gpu_ops
import jax
import jax.numpy as jnp
import numpy as np
from gpu_ops import OPS, Entry, Function

from tftoolkit import custom_ops

DEVICE = jax.devices()[0]
ON_GPU = DEVICE.platform == "gpu"
DTYPES = ("float32", "bfloat16")
WARM_UP = 3  # rounds


def differentiable(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)


def wide(plain: Function) -> Function:
    """The formula as one writes it without the op: in float32, rounded to the first input's dtype in the end."""

    def run(x: jax.Array, *others: jax.Array) -> Any:
        outputs = plain(jnp, *(one.astype(jnp.float32) if differentiable(one) else one for one in (x, *others)))
        return jax.tree.map(lambda one: one.astype(x.dtype), outputs)

    return run


def training(function: Function) -> Callable[..., list[Any]]:
    """(inputs, output gradients) → outputs and gradients, as a list."""

    def run(inputs: Sequence[jax.Array], upstream: Sequence[jax.Array]) -> list[Any]:
        places = [i for i, one in enumerate(inputs) if differentiable(one)]

        def of_floats(*floats: jax.Array) -> list[jax.Array]:
            given = list(inputs)
            for i, one in zip(places, floats, strict=True):
                given[i] = one
            return jax.tree.leaves(function(*given))

        outputs, pull = jax.vjp(of_floats, *(inputs[i] for i in places))
        return [*outputs, *pull([up.astype(one.dtype) for up, one in zip(upstream, outputs, strict=True)])]

    return run


def upstream_of(entry: Entry, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What comes back from behind, for each output; in the inputs' dtype, which holds it exactly."""
    shapes = jax.eval_shape(entry.ours, *inputs)
    return [gpu_ops.normal(7 + i, one.shape, inputs[0].dtype.name) for i, one in enumerate(jax.tree.leaves(shapes))]


def exact(entry: Entry, inputs: Sequence[np.ndarray], upstream: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Values by NumPy, and gradients by JAX on the CPU, in float64."""
    given = [one.astype(np.float64) if differentiable(one) else one for one in inputs]
    outputs = jax.tree.leaves(entry.plain(np, *given))
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        arrays = [jnp.asarray(one) for one in given]
        run = training(lambda *arguments: entry.plain(jnp, *arguments))
        found = run(arrays, [jnp.asarray(one.astype(np.float64)) for one in upstream])
        return [*outputs, *map(np.asarray, found[len(outputs) :])]


def parity(name: str, entry: Entry) -> float:
    """The largest share of the allowed error that a case takes: a few times that of the formula in float32."""
    worst, cases = 0.0, [case for case in entry.cases if 0 not in case.shape]
    for case in cases:
        inputs = entry.arguments(case.shape, case.dtype)
        upstream = upstream_of(entry, inputs)
        right = exact(entry, inputs, upstream)
        arrays, above = list(map(jnp.asarray, inputs)), list(map(jnp.asarray, upstream))
        ours = training(custom_ops.as_jax(entry.ours))(arrays, above)
        naive = training(wide(entry.plain))(arrays, above)
        for one, other, wanted in zip(ours, naive, right, strict=True):
            error, budget = (np.abs(np.asarray(value, np.float64) - wanted).max() for value in (one, other))
            share = error / (entry.budget * budget + 2.0**-21 * max(1.0, np.abs(wanted).max()))
            assert share <= 1, f"{name} {case}: off by {error:.2g}, the formula in float32 by {budget:.2g}"
            worst = max(worst, share)
    print(f"{name}: {len(cases)} cases agree on {DEVICE.device_kind}", file=sys.stderr)
    return worst


def torch_calls(entry: Entry, inputs: Sequence[np.ndarray], upstream: Sequence[np.ndarray]) -> dict[str, Any]:
    """PyTorch's own functions, eager and compiled (Triton)."""
    if entry.torch is None or importlib.util.find_spec("torch") is None:
        return {}
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def tensor(array: np.ndarray) -> Any:
        floats = differentiable(array)
        found = torch.from_numpy(array.astype(np.float32) if floats else array).to(device)
        return found.to(getattr(torch, array.dtype.name)).requires_grad_() if floats else found

    tensors = [tensor(one) for one in inputs]
    above = [tensor(one).detach() for one in upstream]

    def call(function: Function) -> Callable[[], Any]:
        def run() -> None:
            found = function(*tensors)
            outputs = list(found) if isinstance(found, tuple) else [found]
            ups = [up.to(one.dtype) for up, one in zip(above, outputs, strict=True)]
            torch.autograd.grad(outputs, [one for one in tensors if one.requires_grad], ups)

        return run

    def run(*arguments: Any) -> Any:
        return entry.torch(torch, *arguments)  # type: ignore[misc]

    calls = {"torch": call(run)}
    if importlib.util.find_spec("triton") is not None and device == "cuda":
        calls["torch.compile"] = call(torch.compile(run))
    # One stream: a synchronisation behind the last call waits for all.
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    return {name: (function, lambda _: sync()) for name, function in calls.items()}


def seconds(calls: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]], rounds: int) -> dict[str, list[float]]:
    """Per call: each round makes several calls and then waits, so that a GPU is not kept waiting by its host."""
    at_once = 10 if ON_GPU else 1
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + WARM_UP):
        for name, (call, wait) in calls.items():
            start = time.perf_counter()
            for _ in range(at_once):
                result = call()
            wait(result)
            if number >= WARM_UP:
                taken[name].append((time.perf_counter() - start) / at_once)
    return taken


def speed(entry: Entry, shape: Sequence[int], dtype: str, rounds: int) -> dict[str, list[float]]:
    inputs = entry.arguments(shape, dtype)
    upstream = upstream_of(entry, inputs)
    arrays, above = list(map(jnp.asarray, inputs)), list(map(jnp.asarray, upstream))
    copied = jnp.zeros(int(entry.moved * inputs[0].nbytes) // 2, jnp.uint8)
    calls: dict[str, Any] = {}
    for name, function in (("ours", custom_ops.as_jax(entry.ours)), ("XLA", wide(entry.plain))):
        run = jax.jit(training(function))
        calls[name] = (lambda run=run: run(arrays, above), jax.block_until_ready)
    calls["copy"] = (lambda: jnp.copy(copied), jax.block_until_ready)
    return seconds(calls | torch_calls(entry, inputs, upstream), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50 if ON_GPU else 3)
    parser.add_argument("--ops", default=",".join(OPS), help="names, with commas between them")
    parser.add_argument("--no-parity", action="store_true", help="only speed")
    options = parser.parse_args()
    rivals = ("XLA", "torch", "torch.compile")
    table = csv.writer(sys.stdout)
    table.writerow(["device", "op", "shape", "dtype", "ours_us", "spread_us", *(f"{one}_us" for one in rivals),
                    "GB_per_s", "of_copy", "of_error_budget"])  # fmt: skip
    for name in options.ops.split(","):
        entry = OPS[name]
        share = "" if options.no_parity else f"{parity(name, entry):.2f}"
        for full in entry.speed:
            shape = full if ON_GPU else (max(1, full[0] // 64), *full[1:])
            for dtype in DTYPES:
                taken = speed(entry, shape, dtype, options.rounds)
                low, ours, high = statistics.quantiles(taken["ours"], n=4)
                others = [f"{statistics.median(taken[one]) * 1e6:.1f}" if one in taken else "" for one in rivals]
                moved = entry.moved * np.prod(shape) * jnp.dtype(dtype).itemsize
                table.writerow([DEVICE.device_kind, name, "x".join(map(str, shape)), dtype, f"{ours * 1e6:.1f}",
                                f"{(high - low) * 1e6:.1f}", *others, f"{moved / ours / 1e9:.1f}",
                                f"{statistics.median(taken['copy']) / ours:.2f}", share])  # fmt: skip
                sys.stdout.flush()


if __name__ == "__main__":
    main()
