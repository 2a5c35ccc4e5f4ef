"""The tutorial on custom ops runs, as a reader would run it: in one folder, in the order of the page."""

import importlib.util
import re
from pathlib import Path

import pytest

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import toolchain

PAGE = Path(__file__).parents[2] / "docs/custom_ops.md"
_FILE = re.compile(r"(?://|#) ([\w.]+\.(?:cc|cu|py))\b")


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory, blocks):
    """The folder with the tutorial's files, and its programs: blocks that name no file."""
    folder = tmp_path_factory.mktemp("tutorial")
    programs = []
    for code in blocks("custom_ops"):
        if named := _FILE.match(code):
            (folder / named[1]).write_text(code)
        else:
            programs.append(code)
    return folder, programs


@pytest.mark.slow
def test_the_op_tutorial_runs_and_its_saved_model_needs_no_module(tutorial, run):
    folder, programs = tutorial
    output = run("".join(code for code in programs if "import jax" not in code and "opcheck(" not in code), folder)
    assert "decay has shape [7], but its dimension channels must be 16 as in x" in output
    assert (folder / "plain/saved_model.pb").exists()
    assert (folder / "native/assets.extra/load.py").exists()
    (program,) = (code for code in programs if "runpy" in code)
    (folder / "leaky.py").rename(folder / "gone.py")
    run(program, folder)
    (folder / "gone.py").rename(folder / "leaky.py")


@pytest.mark.slow
def test_the_op_of_the_tutorial_is_in_order(tutorial, run):
    folder, programs = tutorial
    (program,) = (code for code in programs if "opcheck(" in code)
    assert "no check failed" in run(program, folder)


@pytest.mark.slow
@pytest.mark.skipif(toolchain.nvcc() is None, reason="no CUDA toolkit")
def test_the_cuda_twin_of_the_tutorial_compiles(tutorial):
    folder, _ = tutorial
    sources = [folder / name for name in ("leaky.cc", "leaky_grad.cc", "leaky.cu")]
    handlers = custom_ops.load("Twin", sources, cuda=True, cache_dir=folder / "cache").handlers
    assert all(handlers[op].keys() == {"CPU", "CUDA"} for op in ("Leaky", "LeakyGrad"))


@pytest.mark.slow
def test_the_cuda_twin_of_the_tutorial_is_in_order_in_emulation(tutorial, run):
    folder, programs = tutorial
    (program,) = (code for code in programs if "opcheck(" in code)
    call = "custom_ops.opcheck(leaky, x, decay"
    assert call in program
    checks = "['runs', 'empty', 'reference', 'sizes', 'nan', 'gradient']"
    assert "no check failed" in run(program.replace(call, f"{call}, device='emulated', checks={checks}"), folder)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_the_op_tutorial_runs_in_jax(tutorial, run):
    folder, programs = tutorial
    (program,) = (code for code in programs if "import jax" in code)
    output = run(program + "import sys\nassert 'tensorflow' not in sys.modules\n", folder)
    assert "1.875" in output


def test_the_first_op_is_as_short_as_promised(tutorial):
    folder, _ = tutorial
    assert f"in {len((folder / 'leaky.cc').read_text().splitlines())} lines" in PAGE.read_text()
