"""nvcc takes what emulation takes, for every target, without spills, and makes tensor-core instructions of it."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import builder, library, toolchain

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit here"),
]
PRODUCT = Path(__file__).parent / "product.cu"
OPS = Path(custom_ops.__path__[0])
# Of a thread: 65536 / (registers * threads) blocks fit a multiprocessor. Attention keeps its sums in them, two blocks
# of 128 threads; of the others 512 threads fit.
MOST_REGISTERS = {"flash_attention": 255}
OTHERS = 128
ALL, ONE = {"sm_80", "sm_90"}, {"sm_90"}
COPIES_AND_LOADS = ("LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS.E.BYPASS.128")
# What is made of the files that multiply on tensor cores.
PRODUCTS = {
    "deform_conv2d_bf16": ("HMMA.16816.F32.BF16",),
    "deform_conv2d_f16": ("HMMA.16816.F32",),
    "product": ("HMMA.16816.F32", "HMMA.16816.F32.BF16"),
    "flash_attention_bf16": ("HMMA.16816.F32.BF16",),
    "flash_attention_f16": ("HMMA.16816.F32",),
    "fused_linear_cross_entropy_bf16": ("HMMA.16816.F32.BF16",),
    "fused_linear_cross_entropy_f16": ("HMMA.16816.F32",),
}


class Kernel(NamedTuple):
    name: str
    target: str
    spilled: int  # bytes stored and loaded
    registers: int


def compiled(source: Path, folder: Path, targets: set[str] = ALL) -> tuple[Path, list[Kernel]]:
    """The object file, and what ptxas says about each kernel in it for each target.

    For all targets with PTX beside them; for one, kernels alone, without the host's part: a quarter of the time.
    """
    nvcc = toolchain.nvcc()
    assert nvcc is not None
    output = folder / f"{source.stem}.o"
    include = [f"-I{toolchain.INCLUDE_DIR}", f"-isystem={toolchain.ffi_include_dir()}"]
    flags, what = list(builder.CUDA_CFLAGS), "-c"
    if targets != ALL:
        first, last = flags.index("-gencode"), len(flags) - flags[::-1].index("-gencode")
        flags[first : last + 1], what = [f"-arch={target}" for target in targets], "-cubin"
    command = [*nvcc.command, *flags, "-Xptxas", "-v", *include, what, str(source), "-o", str(output)]
    done = toolchain.run(command)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    entry = (
        r"Compiling entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    found = re.findall(entry, said, re.DOTALL)
    return output, [Kernel(name, target, int(out) + int(back), int(used)) for name, target, out, back, used in found]


def tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or of NVIDIA's package of this name on PyPI."""
    places = [os.environ.get("PATH", ""), *map(str, Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))]
    return shutil.which(name, path=os.pathsep.join(places))


def check(kernels: list[Kernel], most_registers: int = OTHERS, targets: set[str] = ALL) -> None:
    assert {kernel.target for kernel in kernels} == targets
    assert [kernel for kernel in kernels if kernel.spilled or kernel.registers > most_registers] == []


def check_instructions(output: Path, targets: set[str] = ALL) -> None:
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not (cuobjdump and nvdisasm):
        pytest.skip("registers are right; instructions were not looked at, neither cuobjdump nor nvdisasm here")
    command = [cuobjdump, "-sass", str(output)]
    environment = os.environ | {"NVDISASM_PATH": str(Path(nvdisasm).parent)}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    parts = re.split(r"^\s*code for (sm_\d+)", text, flags=re.MULTILINE)[1:]
    codes: dict[str, str] = {}  # several kernels may have one target each
    for target, code in zip(parts[::2], parts[1::2], strict=True):
        codes[target] = codes.get(target, "") + code
    for target in targets:
        for instruction in (*PRODUCTS[output.stem], *COPIES_AND_LOADS):
            assert re.search(rf"\b{re.escape(instruction)}\s", codes[target]), f"{instruction} on {target}"


def test_the_product_is_made_of_tensor_core_instructions(tmp_path):
    output, kernels = compiled(PRODUCT, tmp_path)
    check(kernels)
    check_instructions(output)


SOURCES = [source for folder in library.builtin_folders() for source in sorted((OPS / folder).glob("*.cu"))]
WITHOUT_KERNELS = ("deform_conv2d",)  # handlers alone
# To compile one takes 8 s of processor time and more, for all targets up to 40. These use all of the shared headers and
# both ways into a product; what they have in common with the others need not be compiled each time.
FIRST = (
    "adamw",
    "ctc_loss",
    "deform_conv2d_bf16",
    "dropout_add",
    "flash_attention_bf16",
    "fused_linear_cross_entropy",
    "fused_linear_cross_entropy_bf16",
    "rms_norm",
    "roi_align",
    "swiglu",
)


@pytest.mark.parametrize("targets", [ONE, pytest.param(ALL, marks=pytest.mark.exhaustive)], ids=["sm_90", "all"])
@pytest.mark.parametrize(
    "source",
    [pytest.param(one, id=one.stem, marks=() if one.stem in FIRST else pytest.mark.exhaustive) for one in SOURCES],
)
def test_built_in_kernels_spill_nothing(source, targets, tmp_path):
    output, kernels = compiled(source, tmp_path, targets)
    if source.stem in WITHOUT_KERNELS:
        assert not kernels
        return
    check(kernels, MOST_REGISTERS.get(source.parent.name, OTHERS), targets)
    if output.stem in PRODUCTS:
        check_instructions(output, targets)
