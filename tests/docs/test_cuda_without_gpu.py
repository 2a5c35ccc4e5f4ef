"""The example on the page on CUDA without a GPU runs, finds what the page says, and passes when mended."""

import re

import pytest


@pytest.mark.slow
def test_the_example_finds_its_race_and_passes_when_mended(blocks, run, tmp_path):
    (kernel,), (program,) = blocks("cuda_without_gpu", "cpp"), blocks("cuda_without_gpu", "python")
    (tmp_path / "smooth.cu").write_text(kernel)
    output = run(program, tmp_path)
    page = " ".join(re.findall(r"^# (.*)$", program, re.MULTILINE))  # what it says that is printed
    assert "no barrier orders it after" in page
    assert page in output
    store = "n - 1)];\n"
    assert kernel.count(store) == 1
    (tmp_path / "smooth.cu").write_text(kernel.replace(store, f"{store}  __syncthreads();\n"))
    checked = "print(custom_ops.opcheck(smooth, tf.range(100.0), checks=['runs', 'sizes', 'empty']))\n"
    output = run(program.replace("try:", checked + "try:"), tmp_path)
    assert "InternalError" not in output
    assert "no check failed" in output
