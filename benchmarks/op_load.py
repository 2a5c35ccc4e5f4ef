"""How long it takes from a source to a result, cold and warm, next to torch.utils.cpp_extension on the same op.

    python benchmarks/op_load.py [--runs 7] [--torch /path/to/python]

The op is the leaky integrator of docs/custom_ops.md. Each figure is taken in a fresh process, from when the framework
has been imported and has run an operation: from importing the compiling package to the op's first result. *cold*: the
op was never compiled (tftoolkit's op host was). *warm*: another process compiled it before. *call*: microseconds per
eager call on 4x8x16 values, without gradient, the best of 20 batches of calls. The alternatives run in turn, so that a
busy machine slows all alike.

``--torch`` names a Python that has torch and ninja; without it only tftoolkit is measured. Everything goes to
benchmarks/results.csv.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = (4, 8, 16)
CALLS = 250

TORCH_KERNEL = r"""
#include <algorithm>
static void Scan(const float* x, const float* decay, float* y, int64_t time, int64_t channels) {
  std::copy_n(x, channels, y);
  for (int64_t t = 1; t < time; ++t) {
    const float* before = y + (t - 1) * channels;
    for (int64_t c = 0; c < channels; ++c) y[t * channels + c] = x[t * channels + c] + decay[c] * before[c];
  }
}
torch::Tensor leaky(const torch::Tensor& x_any, const torch::Tensor& decay_any) {
  const torch::Tensor x = x_any.contiguous(), decay = decay_any.contiguous();
  TORCH_CHECK(x.scalar_type() == torch::kFloat && decay.scalar_type() == torch::kFloat, "float32 is needed");
  TORCH_CHECK(x.dim() >= 2, "x needs time and channels");
  TORCH_CHECK(decay.dim() == 1 && decay.size(0) == x.size(-1), "decay must have as many channels as x");
  torch::Tensor y = torch::empty_like(x);
  const int64_t channels = x.size(-1), time = x.size(-2), size = time * channels;
  if (size == 0) return y;
  const float* in = x.data_ptr<float>();
  const float* factor = decay.data_ptr<float>();
  float* out = y.data_ptr<float>();
  at::parallel_for(0, x.numel() / size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) Scan(in + i * size, factor, out + i * size, time, channels);
  });
  return y;
}
"""
# What makes it an op that torch.compile, autograd and export know.
TORCH_LIBRARY = r"""
TORCH_LIBRARY(mine, m) { m.def("leaky(Tensor x, Tensor decay) -> Tensor"); }
TORCH_LIBRARY_IMPL(mine, CPU, m) { m.impl("leaky", leaky); }
"""
TORCH_PYTHON = """
@torch.library.register_fake("mine::leaky")
def _(x, decay):
    return torch.empty_like(x)
"""


def tutorial(name: str) -> str:
    """A source of the tutorial."""
    page = (Path(__file__).parents[1] / "docs/custom_ops.md").read_text()
    (code,) = re.findall(rf"```cpp\n(// {name}:.*?)```", page, re.DOTALL)
    return str(code)


# What a fresh process does: prepare, then the part that is timed, which returns the op and its arguments.

Op = tuple[Callable[..., Any], tuple[Any, ...]]


def with_tftoolkit(folder: str, *, cuda: bool = False) -> Callable[[], Op]:
    import tensorflow as tf

    arguments = tf.random.normal(SHAPE), tf.fill([SHAPE[-1]], 0.9)
    tf.reduce_sum(arguments[0]).numpy()

    def load() -> Op:
        from tftoolkit import custom_ops

        text = tutorial("leaky.cu").replace("TK_KERNEL(LeakyGrad", "// TK_KERNEL(LeakyGrad") if cuda else None
        return custom_ops.load_inline("Mine", tutorial("leaky.cc"), text, cache_dir=folder).leaky, arguments

    return load


def with_torch(folder: str, *, library: bool = False) -> Callable[[], Op]:
    import torch

    arguments = torch.randn(SHAPE), torch.full(SHAPE[-1:], 0.9)
    float(arguments[0].sum())
    Path(folder).mkdir(exist_ok=True)

    def load() -> Op:
        from torch.utils import cpp_extension

        options: dict[str, Any] = {"build_directory": folder, "extra_cflags": ["-O3"]}
        if not library:
            return cpp_extension.load_inline("mine", TORCH_KERNEL, functions="leaky", **options).leaky, arguments
        cpp_extension.load_inline("mine", TORCH_KERNEL + TORCH_LIBRARY, is_python_module=False, **options)
        exec(TORCH_PYTHON, {"torch": torch})
        return torch.ops.mine.leaky, arguments

    return load


ALTERNATIVES: dict[str, Callable[[str], Callable[[], Op]]] = {
    "tftoolkit": with_tftoolkit,
    "tftoolkit, C++ and CUDA": lambda folder: with_tftoolkit(folder, cuda=True),
    "torch load_inline, pybind11": with_torch,
    "torch load_inline, TORCH_LIBRARY": lambda folder: with_torch(folder, library=True),
}


def child(alternative: str, folder: str) -> dict[str, float]:
    load = ALTERNATIVES[alternative](folder)
    start = time.perf_counter()
    op, arguments = load()
    loaded = time.perf_counter()
    op(*arguments).numpy()
    first = time.perf_counter()
    per_call = []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(CALLS):
            op(*arguments)
        per_call.append((time.perf_counter() - begin) / CALLS)
    return {"load": loaded - start, "first": first - start, "call": min(per_call)}


def in_fresh_process(python: str, alternative: str, folder: Path) -> dict[str, float]:
    command = [python, __file__, "--child", alternative, str(folder)]
    # Python's own cache of compiled modules is in use, as in any installation.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder.parent / "modules")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{alternative}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines(*texts: str) -> int:
    """Of code: neither blank nor comment."""
    every = [line.strip() for text in texts for line in text.splitlines()]
    return sum(bool(line) and not line.startswith(("//", "#include")) for line in every)


def measure(python: dict[str, str], runs: int) -> dict[tuple[str, str], list[float]]:
    figures: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for run in range(runs):
            for alternative, interpreter in python.items():
                folder = Path(temporary) / f"cache-{run}"
                cold = in_fresh_process(interpreter, alternative, folder)
                warm = in_fresh_process(interpreter, alternative, folder)
                shutil.rmtree(folder)
                for metric, value in {
                    "cold, first result": cold["first"], "warm, load": warm["load"] * 1e3,
                    "warm, first result": warm["first"] * 1e3, "call": warm["call"] * 1e6,
                }.items():  # fmt: skip
                    figures.setdefault((alternative, metric), []).append(value)
                print(f"run {run + 1}: {alternative:34} cold {cold['first']:.2f} s, warm {warm['load'] * 1e3:.1f} ms")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--torch", help="a Python interpreter with torch and ninja")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(*arguments.child)))
        return
    import results

    from tftoolkit.custom_ops.engine import toolchain

    where = results.machine()
    python = {name: arguments.torch or "" if name.startswith("torch") else sys.executable for name in ALTERNATIVES}
    if toolchain.nvcc() is None:
        del python["tftoolkit, C++ and CUDA"]
    figures = measure({name: path for name, path in python.items() if path}, arguments.runs)
    figures["tftoolkit", "lines of C++"] = [lines(tutorial("leaky.cc"))]
    versions = {"compiler": toolchain.cxx().version}
    if arguments.torch:
        figures["torch load_inline, pybind11", "lines of C++"] = [lines(TORCH_KERNEL)]
        figures["torch load_inline, TORCH_LIBRARY", "lines of C++"] = [lines(TORCH_KERNEL, TORCH_LIBRARY, TORCH_PYTHON)]
        ask_version = "import torch; print(torch.__version__)"
        versions["torch"] = subprocess.check_output([arguments.torch, "-c", ask_version], text=True).strip()
    units = {
        "cold, first result": "s", "warm, load": "ms", "warm, first result": "ms", "call": "µs", "lines of C++": "lines"
    }  # fmt: skip
    results.save("op_load", figures, units, where, **versions)
    for (alternative, metric), values in figures.items():
        spread = f"{min(values):.3g}–{max(values):.3g}"
        print(f"{alternative:34} {metric:20} {statistics.median(values):8.3g} {units[metric]:6} {spread}")


if __name__ == "__main__":
    main()
