"""nvcc takes what emulation takes, for every target, without spills, and makes tensor-core instructions of it."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
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
# Of a thread: so that 512 threads fit a multiprocessor, with registers for what they have on the way.
MOST_REGISTERS = 128
ALL, ONE = {"sm_80", "sm_90"}, {"sm_90"}


class Kernel(NamedTuple):
    name: str
    target: str
    spilled: int  # bytes stored and loaded
    registers: int


def compiled(source: Path, folder: Path, targets: set[str] = ALL) -> tuple[Path, list[Kernel]]:
    """The object file, and what ptxas says about each kernel in it for each target; PTX as well, for all of them."""
    nvcc = toolchain.nvcc()
    assert nvcc is not None
    output = folder / f"{source.stem}.o"
    include = [f"-I{toolchain.INCLUDE_DIR}", f"-isystem={toolchain.ffi_include_dir()}"]
    flags = list(builder.CUDA_CFLAGS)
    if targets != ALL:
        first, last = flags.index("-gencode"), len(flags) - flags[::-1].index("-gencode")
        flags[first : last + 1] = [f"-arch={target}" for target in targets]
    command = [*nvcc.command, *flags, "-Xptxas", "-v", *include, "-c", str(source), "-o", str(output)]
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


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    return compiled(PRODUCT, tmp_path_factory.mktemp("nvcc"))


def check(kernels: list[Kernel], targets: set[str] = ALL) -> None:
    assert {kernel.target for kernel in kernels} == targets
    assert [kernel for kernel in kernels if kernel.spilled or kernel.registers > MOST_REGISTERS] == []


def test_the_product_has_registers_enough(product):
    check(product[1])


def check_instructions(output: Path, targets: set[str], formats: Sequence[str]) -> None:
    """Those for products on tensor cores in the formats, and for what feeds them."""
    cuobjdump, nvdisasm = tool("cuobjdump"), tool("nvdisasm")
    if not (cuobjdump and nvdisasm):
        pytest.skip("neither cuobjdump nor nvdisasm here")
    command = [cuobjdump, "-sass", str(output)]
    environment = os.environ | {"NVDISASM_PATH": str(Path(nvdisasm).parent)}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    parts = re.split(r"^\s*code for (sm_\d+)", text, flags=re.MULTILINE)[1:]
    codes = dict(zip(parts[::2], parts[1::2], strict=True))
    for target in targets:
        for instruction in (
            *(f"HMMA.16816.F32{one}" for one in formats),
            "LDSM.16.M88.4",
            "LDSM.16.MT88.4",
            "LDGSTS.E.BYPASS.128",
        ):
            assert re.search(rf"\b{re.escape(instruction)}\s", codes[target]), f"{instruction} on {target}"


def test_the_product_is_made_of_tensor_core_instructions(product):
    check_instructions(product[0], ALL, ["", ".BF16"])


FORMATS = {"_bf16": [".BF16"], "_f16": [""]}  # by the end of a source's name
SOURCES = [source for folder in library.builtin_folders() for source in sorted((OPS / folder).glob("*.cu"))]


# To compile one for all targets takes some 40 s of processor time.
@pytest.mark.parametrize("targets", [ONE, pytest.param(ALL, marks=pytest.mark.exhaustive)], ids=["sm_90", "all"])
@pytest.mark.parametrize("source", SOURCES, ids=[source.stem for source in SOURCES])
def test_built_in_kernels_spill_nothing(source, targets, tmp_path):
    output, kernels = compiled(source, tmp_path, targets)
    check(kernels, targets)
    for end, formats in FORMATS.items():
        if source.stem.endswith(end):
            check_instructions(output, targets, formats)
