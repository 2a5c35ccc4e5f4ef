"""Every built-in CUDA kernel passes its cases in emulation, and mistakes planted in one of them are found."""

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops
from tftoolkit.custom_ops import emulation
from tftoolkit.custom_ops.engine import library, ops
from tftoolkit.custom_ops.opcheck import pytest_checks, table

FOLDERS = [folder for folder in library.builtin_folders() if library.has_cuda(folder)]
SMALL = 2048  # elements


def cases(folder: str):
    return importlib.import_module(f"tftoolkit.custom_ops.{folder}.cases").CASES


def opened(folder: str):
    getattr(custom_ops, folder)  # attaches references and gradients
    return library.load_builtin(folder)


CASES = [(folder, case) for folder in FOLDERS for case in cases(folder)]


def some(chosen) -> list:
    return [pytest.param(*one, id="-".join([one[0], *map(str, one[1].shape), one[1].dtype])) for one in chosen]


def run_case(folder: str, case) -> None:
    for op in map(opened(folder).op, opened(folder).schemas):
        if emulation.has_kernel(op):
            result = table.check_cases(emulation.twin(op), [case])
            assert result.verdict == "ok", f"{op.name}: {result.seen}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, "random"])
@pytest.mark.parametrize(("folder", "case"), some(one for one in CASES if math.prod(one[1].shape) < SMALL))
def test_small_cases(folder, case, seed, random_seed):
    with emulation.settings(seed=random_seed if seed else 0, max_blocks=1 if seed else 0):
        run_case(folder, case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [0, "random"])
@pytest.mark.parametrize(("folder", "case"), some(one for one in CASES if math.prod(one[1].shape) >= SMALL))
def test_large_cases(folder, case, seed, random_seed):
    with emulation.settings(seed=random_seed if seed else 0, max_blocks=3 if seed else 0):
        run_case(folder, case)


RNG = np.random.default_rng(0)
X, GAMMA = RNG.standard_normal((3, 8)).astype(np.float32), RNG.standard_normal(8).astype(np.float32)
# The others run on the result of one kernel, or on the reference.
KERNEL = ["runs", "empty", "modes", "sizes", "gradient"]
test_opcheck = pytest.mark.slow(pytest_checks(custom_ops.rms_norm, X, GAMMA, checks=KERNEL, device="emulated"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)])
def test_the_public_function_and_its_gradient(mode):
    def run(x, gamma):
        with tf.GradientTape() as tape:
            tape.watch([x, gamma])
            y = tf.sin(custom_ops.rms_norm(x, gamma))
        return [y, *tape.gradient(y, [x, gamma])]

    x, gamma = tf.constant(X), tf.constant(GAMMA)
    expected = run(x, gamma)
    with emulation.emulated(ops.find("TfToolkit>RmsNorm")):
        actual = mode(run)(x, gamma)
        graph = tf.function(run).get_concrete_function(x, gamma).graph.as_graph_def()
    functions = [function.node_def for function in graph.library.function]
    used = {node.op for nodes in [graph.node, *functions] for node in nodes}
    assert {"TfToolkitEmulated>RmsNorm", "TfToolkitEmulated>RmsNormGrad"} <= used
    assert not {"TfToolkit>RmsNorm", "TfToolkit>RmsNormGrad"} & used
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# What is changed in rms_norm.cu, the shape of x, and what is found. A block comes to several rows.
MUTANTS = {
    "no barrier before the array is used again": (
        "    __syncthreads();  // the array may still be in use by the previous sum\n", "", (3, 1300),
        r"kernel Forward<float, 256>, .*race: store to shared array warps",
    ),
    "no barrier between store and load": (
        "= value;\n    __syncthreads();\n", "= value;\n", (3, 1300),
        r"load from shared array warps \+ \d+ bytes, which nobody has written",
    ),
    "no barrier before the sum over rows": (
        "= sum;\n  __syncthreads();\n", "= sum;\n", (40, 40),
        r"kernel PartialGamma<float>, .*load from shared array sums",
    ),
    "all slabs in one row of partials": (
        "partials[blockIdx.y * d + column]", "partials[column]", (70, 40),
        r"kernel PartialGamma<float>, .*race: store to scratch memory",
    ),
    "one element too many": ("i < d; i += kGroup) sum", "i <= d; i += kGroup) sum", (1, 40), "behind its end"),
    "an array that is too small": (
        "warps[kGroup / kWarp];", "warps[kGroup / kWarp - 1];", (3, 1300), "shared array warps .*behind its end",
    ),
    "a shuffle in some lanes only": (
        "value += __shfl_xor_sync", "if (threadIdx.x % 4) value += __shfl_xor_sync", (3, 40), "a shuffle, .*waits for",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def load_mutant(tmp_path_factory):
    """Mutant → its library."""
    folder = tmp_path_factory.mktemp("mutants")
    source = Path(custom_ops.__path__[0]) / "rms_norm" / "rms_norm.cu"
    schemas = "\n".join(re.findall(r"TK_OP\(.*?\);\n", source.with_suffix(".cc").read_text(), re.DOTALL))

    def load(mutant: str):
        old, new, _, _ = MUTANTS[mutant]
        text = re.sub(r" *case ffi::(BF16|F16):.*?;\n", "", source.read_text(), flags=re.DOTALL)  # compiles sooner
        assert text.count(old) == 1
        path = folder / f"mutant_{list(MUTANTS).index(mutant)}.cu"
        path.write_text(text.replace(old, new) + schemas)
        return custom_ops.load(path.stem, [path], cuda="emulated", cache_dir=folder)

    return load


# Those of its barriers and of its sums; the others are like planted.cu's.
FIRST = [name for name in MUTANTS if "barrier" in name or "partials" in name]


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(name, marks=pytest.mark.slow if name in FIRST else pytest.mark.exhaustive) for name in MUTANTS],
)
def test_a_mistake_in_rms_norm_is_found(load_mutant, mutant):
    _, _, shape, text = MUTANTS[mutant]
    x, gamma = RNG.standard_normal(shape).astype(np.float32), np.ones(shape[-1], np.float32)
    inverse = np.ones(shape[:-1], np.float32)

    opened = load_mutant(mutant)

    def call() -> None:
        opened.rms_norm(x, gamma)
        opened.rms_norm_grad(x, inverse, x, gamma, inverse)

    with emulation.settings(max_blocks=1), pytest.raises(tf.errors.InternalError, match=text):
        call()
