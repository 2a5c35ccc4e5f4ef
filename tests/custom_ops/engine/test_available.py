"""``custom_ops.available``: what it says about this machine is true. tools/matrix tries other installations."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tftoolkit import custom_ops
from tftoolkit.custom_ops.engine import available, builder, library, toolchain
from tftoolkit.custom_ops.engine.available import HOSTS

GRAMMAR = Path(__file__).parent / "grammar.cc"


def run(code: str, **environment: str) -> str:
    """What a new process prints."""
    command = [sys.executable, "-c", f"import sys\nfrom tftoolkit import custom_ops\n{code}", GRAMMAR]
    settings = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(op: str, host: str) -> dict[str, str]:
    """Dtype → reason."""
    return {row.dtype: row.reason for row in custom_ops.available() if (row.op, row.host) == (op, host)}


def test_every_op_has_a_row_for_every_host():
    custom_ops.load("Grammar", [GRAMMAR])
    found = list(custom_ops.available())
    assert len(found) == len(custom_ops.available())
    hosts: dict[tuple[str, str], list[str]] = {}
    for row in found:
        if row.op.startswith(("TfToolkit>", "Grammar>")):  # other tests may have opened a library in two versions
            hosts.setdefault((row.op, row.dtype), []).append(row.host)
    assert set(map(tuple, hosts.values())) == {HOSTS}
    assert {"TfToolkit>RmsNorm", "TfToolkit>RmsNormGrad", "TfToolkit>ReadRecords", "Grammar>Affine"} <= {
        row.op for row in found
    }
    assert {dtype for op, dtype in hosts if op == "Grammar>Lookup"} == {
        f"T={table} Index={index}" for table in ("f32", "f64") for index in ("i32", "i64")
    }
    assert {dtype for op, dtype in hosts if op == "Grammar>Affine"} == {"f32"}


def test_of_some_folders():
    custom_ops.load("Grammar", [GRAMMAR])
    found = {row.op for row in custom_ops.available("roi_align", "roi_pool")}
    assert found == {f"TfToolkit>{name}" for name in ("RoiAlign", "RoiAlignGrad", "RoiPool", "RoiPoolGrad")}
    with pytest.raises(ValueError, match=r"there is no built-in op 'norm'; those there are: .*, rms_norm"):
        custom_ops.available("norm")


def test_on_this_machine():
    assert rows("TfToolkit>RmsNorm", "TF CPU") == dict.fromkeys(("f32", "bf16", "f16"), "")
    assert rows("TfToolkit>RmsNorm", "XLA Host") == dict.fromkeys(("f32", "bf16", "f16"), "")
    assert rows("TfToolkit>RmsNorm", "reference") == dict.fromkeys(("f32", "bf16", "f16"), "")
    assert rows("TfToolkit>RmsNorm", "JAX CPU") == dict.fromkeys(("f32", "bf16", "f16"), "")
    (reason,) = set(rows("TfToolkit>RmsNorm", "TF GPU").values())
    if library.load_builtin("rms_norm").handlers["RmsNorm"].keys() == {"CPU", "CUDA"}:  # conftest.py hides GPUs
        assert reason.startswith(("no NVIDIA driver", "the NVIDIA driver shows no GPU"))
    else:
        assert reason.startswith("not compiled: no CUDA toolkit" if toolchain.has_gpu() else "not compiled: no NVIDIA")


@pytest.mark.parametrize(
    ("gpu", "nvcc", "reason"),
    [
        (False, None, "no NVIDIA GPU here. With a CUDA toolkit, tftoolkit ops build --cuda compiles it all the same"),
        (False, "nvcc", "no NVIDIA GPU here. With a CUDA toolkit, tftoolkit ops build --cuda compiles it all the same"),
        (True, None, "no CUDA toolkit here. Install one (nvcc 12.8 or newer), or set CUDA_HOME"),
    ],
)
def test_why_cuda_is_missing(monkeypatch, gpu, nvcc, reason):
    """The true reason, in each kind of machine."""
    path = builder.build(library.builtin_recipe("rms_norm", cuda=False))
    monkeypatch.setattr(library, "load_builtin", lambda folder: library.OpLibrary("TfToolkit", path))
    monkeypatch.setattr(library, "builtin_recipe", lambda folder: None)
    monkeypatch.setattr(builder, "build_all", lambda recipes: None)
    monkeypatch.setattr(library, "builtin_folders", lambda: ["rms_norm"])
    monkeypatch.setattr(library, "opened", list)  # other tests may have opened it with CUDA
    monkeypatch.setattr(toolchain, "has_gpu", lambda: gpu)
    monkeypatch.setattr(toolchain, "nvcc", lambda: nvcc)
    for host in ("TF GPU", "XLA CUDA", "JAX CUDA"):
        assert set(rows("TfToolkit>RmsNorm", host).values()) == {f"not compiled: {reason}"}


def test_printing_needs_neither_tensorflow_nor_jax():
    text = run(
        "custom_ops.load('Grammar', sys.argv[1:])\nprint(custom_ops.available())\n"
        "assert not {'tensorflow', 'jax'} & sys.modules.keys()"
    )
    head, *lines = text.splitlines()
    assert head.split("  ")[0] == "op"
    (line,) = [line for line in lines if line.startswith("TfToolkit>RmsNorm ")]
    assert line.endswith("f32, bf16, f16")
    assert "[1] " in text
    assert any(line.startswith("Grammar>Lookup") and line.endswith("T=f32 Index=i32") for line in lines)


def test_without_tensorflow(monkeypatch):
    monkeypatch.setattr(toolchain, "tensorflow_version", lambda: None)
    for host in ("TF CPU", "XLA Host", "reference"):
        (reason,) = set(rows("TfToolkit>RmsNorm", host).values())
        assert reason.startswith("TensorFlow is not installed. Install it: pip install")
    assert set(rows("TfToolkit>RmsNorm", "JAX CPU").values()) == {""}


def test_without_a_compiler():
    text = run("print(custom_ops.available())", CXX="no-such-compiler")
    assert "TfToolkit>rms_norm" in text
    assert "no C++ compiler found (looked for $CXX=no-such-compiler)" in text


@pytest.mark.parametrize("wide", ["0", "1"])
def test_64_bits_in_jax(wide):
    """What the table says before JAX is imported holds once it is."""
    pytest.importorskip("jax")
    text = run(
        """
grammar = custom_ops.load("Grammar", sys.argv[1:])
def reason():
    return {r.dtype: r.reason for r in custom_ops.available() if (r.op, r.host) == ("Grammar>Lookup", "JAX CPU")}
before = reason()
import jax, jax.numpy as jnp, numpy as np
assert reason() == before
narrow, wide = before["T=f32 Index=i32"], before["T=f64 Index=i64"]
assert narrow == ""
y = grammar.lookup(jnp.asarray(np.ones((2, 3))), jnp.asarray(np.zeros(4, np.int64)))
print(y.dtype, wide)
""",
        JAX_ENABLE_X64=wide,
    )
    assert text.strip() == ("float64" if wide == "1" else
        "float32 JAX makes 64-bit numbers 32-bit ones: jax.config.update('jax_enable_x64', True)")  # fmt: skip


HALF = """#include "tftoolkit/op.h"
static ffi::Error Run(ffi::Buffer<ffi::F32> x, ffi::ResultBuffer<ffi::F32> y) {
  for (size_t i = 0; i < x.element_count(); ++i) y->typed_data()[i] = x.typed_data()[i] / 2;
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(Cpu, Run, ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F32>>().Ret<ffi::Buffer<ffi::F32>>());
TK_OP(Half, "(x: f32[...]) -> (y: f32[...])");
TK_KERNEL(Half, CPU, Cpu);
"""


@pytest.mark.slow
def test_a_library_compiled_against_newer_headers(tmp_path):
    jaxlib = toolchain.package_dir("jaxlib")
    tensorflow = toolchain.package_dir("tensorflow")
    if not jaxlib or toolchain.ffi_version(jaxlib / "include") <= toolchain.ffi_version(tensorflow / "include"):
        pytest.skip("needs a JAX whose FFI is newer than TensorFlow's")
    (tmp_path / "half.cc").write_text(HALF)
    text = run(
        f"""
from tftoolkit.custom_ops.engine import library
library.builtin_folders = list  # they would all be compiled against those headers
newer = custom_ops.load("Newer", [{str(tmp_path / "half.cc")!r}])
for row in custom_ops.available():
    if row.op == "Newer>Half" and row.host in ("TF CPU", "XLA Host", "JAX CPU"):
        print(row.host, row.reason)
import numpy as np
try:
    newer.half(np.ones((2, 3), np.float32))
except custom_ops.LoadError as error:
    print(error)
""",
        TFTOOLKIT_FFI_INCLUDE=str(jaxlib / "include"),
    )
    first, second, third, error = text.splitlines()
    for line in (first, second):
        assert "compiled against headers of XLA FFI 0." in line
        assert "TFTOOLKIT_FFI_INCLUDE" in line
    assert third == "JAX CPU "
    assert "compiled against headers of XLA FFI that are newer than this TensorFlow's" in error


def test_headers_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("TFTOOLKIT_FFI_INCLUDE", str(tmp_path))
    with pytest.raises(custom_ops.BuildError, match="was not found in TFTOOLKIT_FFI_INCLUDE="):
        custom_ops.load("Grammar", [GRAMMAR])


@pytest.mark.parametrize(("answer", "reason"), [
    (None, "no NVIDIA driver on this machine (libcuda.so.1)"), ((0, 2), ""),
    ((100, 0), "the NVIDIA driver shows no GPU (CUDA error 100, CUDA_VISIBLE_DEVICES is '5')"),
])  # fmt: skip
def test_why_there_is_no_gpu(monkeypatch, answer, reason):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setattr(toolchain, "ask_driver", lambda: answer)
    assert available._no_gpu() == reason
