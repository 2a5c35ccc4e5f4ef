"""Every check catches the bug that was planted for it, and passes right ops."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from covering import slow_but

from tftoolkit import cli, custom_ops
from tftoolkit.custom_ops.opcheck import CHECKS, child, pytest_checks
from tftoolkit.custom_ops.opcheck.compare import difference

rng = np.random.default_rng(0)
ROW = rng.standard_normal(8).astype(np.float32)
MATRIX = rng.standard_normal((3, 8)).astype(np.float32)
SCALE = (MATRIX, ROW)
SCALE64 = [array.astype(np.float64) for array in SCALE]


@pytest.fixture(scope="module")
def planted(load_module):
    return load_module(Path(__file__).parent / "planted.py").planted


BUGS = {
    "wrong gradient": ("gradient", "wrong_gradient", SCALE, "the gradient of x"),
    "wrong gradient and no reference": ("gradient", "no_reference", SCALE, "gamma .* finite differences give"),
    "missing gradient": ("gradient", "no_gradient", SCALE, "NoGradient has no gradient"),
    "wrong gradient for other ranks": ("gradient_broadcast", "rows_only", SCALE, r"\.\.\. = .* of gamma"),
    "wrong gradient for a sparse upstream": ("gradient_broadcast", "sparse", SCALE, "from a gather"),
    "wrong gradient for a broadcast upstream": ("gradient_broadcast", "shortcut", SCALE, "from a slice"),
    "wrong gradient for one dtype": ("gradient_dtypes", "one_dtype", SCALE64, "T = f32: the gradient of x"),
    "wrong second order": ("second_order", "square", [ROW], "the second derivative by x"),
    "wrong value": ("reference", "wrong_value", SCALE, "as given: y is"),
    "wrong static shape": ("shapes", "wrong_shape", [ROW], r"y is float32\[8\], the reference's is float32\[7\]"),
    "unwritten": ("written", "unwritten", [ROW], r"n = 1: y \(1 of 1 elements, the first at \[0\]\) depends"),
    "reads past the end": ("bounds", "reads_past", [MATRIX], "d = 1: .* reads past the end of input x"),
    "writes past the end": ("bounds", "writes_past", [ROW], "the kernel writes outside of output y"),
    "race": ("determinism", "race", [MATRIX], "y differs from the first run"),
    "wrong under XLA": ("modes", "xla_only", [ROW], "under XLA y is"),
    "NaN swallowed": ("nan", "swallows_nan", [MATRIX], r"NaN in x at \[0, 0\]: y is 0.0 at \[0, 0\], .* is nan"),
    "crash on empty input": ("empty", "crashes_on_empty", [MATRIX], "d = 0: the kernel .* with SIGFPE$"),
    "not a function of rows": ("vectorized_map", "centre", [MATRIX], "y of example 1|y of example 0"),
    "state of the process": ("saved_model", "stateful", [ROW], "as it was before"),
}  # fmt: skip


@pytest.mark.parametrize("bug", [*slow_but(BUGS, *(BUGS.keys() - {"not a function of rows", "state of the process"}))])
def test_a_planted_bug_is_caught_by_its_check(planted, bug):
    check, op, inputs, seen = BUGS[bug]
    with pytest.raises(custom_ops.OpCheckError, match=rf"{check} +FAILED") as caught:
        custom_ops.opcheck(getattr(planted, op), *inputs, checks=[check])
    row = caught.value.report[check]
    assert re.search(seen, row.seen), row.seen
    assert row.advice


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_a_right_op_passes(planted, dtype):
    report = custom_ops.opcheck(planted.right, *(array.astype(dtype) for array in SCALE), alpha=0.7)
    assert [row.check for row in report.results] == list(CHECKS)
    assert {row.verdict for row in report.results} == {"ok"}
    assert "agrees with finite differences in float64" in report["gradient"].seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "float16"))]
)
def test_rms_norm_passes(dtype):
    x, gamma = (tf.cast(array, dtype) for array in SCALE)
    report = custom_ops.opcheck(custom_ops.rms_norm, x, gamma, epsilon=1e-3)
    assert {row.verdict for row in report.results} == {"ok"}


test_in_one_line = pytest_checks(lambda *inputs: custom_ops.rms_norm(*inputs), *SCALE, checks=["runs", "gradient"])


@pytest.mark.slow
def test_a_kernel_that_hangs_is_caught(planted, monkeypatch):
    custom_ops.opcheck(planted.right, *SCALE, checks=["runs"])  # the process is up: what takes time now is the kernel
    monkeypatch.setattr(child, "_TIMEOUT", 2.0)
    with pytest.raises(custom_ops.OpCheckError, match="n = 17: the kernel does not return within 2 s"):
        custom_ops.opcheck(planted.hangs, ROW, checks=["runs"])


def test_o3_an_op_that_is_not_declared_batchable_is_mapped_by_a_loop(planted):
    report = custom_ops.opcheck(planted.centre_all, MATRIX, checks=["vectorized_map"])
    assert report["vectorized_map"].seen == "1 case, one call after the other"
    report = custom_ops.opcheck(planted.right, *SCALE, checks=["vectorized_map"])
    assert report["vectorized_map"].seen == "1 case, in one call on stacked inputs"


def test_o10_a_natural_gradient_passes_behind_a_gather(planted):
    assert (
        custom_ops.opcheck(planted.right, *SCALE, checks=["gradient_broadcast"])["gradient_broadcast"].verdict == "ok"
    )


def test_o5_what_a_stateful_op_does_differently_each_time_is_no_finding(planted):
    report = custom_ops.opcheck(planted.counts, ROW, checks=["runs", "invalid", "bounds", "shapes", "determinism"])
    assert [row.verdict for row in report.results] == ["ok", "ok", "skipped", "ok", "skipped"]
    assert "declared stateful" in report["determinism"].seen


def test_a_gradient_may_be_refused_on_purpose(planted):
    report = custom_ops.opcheck(planted.refusing, *SCALE, checks=["gradient", "second_order"])
    assert report["gradient"].seen == "refused: Refusing has no gradient on purpose"
    assert report["second_order"].verdict == "skipped"


def test_checks_that_need_a_reference_say_so(planted):
    report = custom_ops.opcheck(planted.no_reference, *SCALE, checks=["reference", "nan"])
    assert {row.verdict for row in report.results} == {"skipped"}
    assert "write one under @no_reference.reference" in report["reference"].seen


def test_the_report_is_a_table(planted):
    with pytest.raises(custom_ops.OpCheckError) as caught:
        custom_ops.opcheck(planted.no_gradient, *SCALE, checks=["invalid", "gradient"], alpha=2.0)
    assert caught.value.plain.splitlines() == [
        "opcheck of Planted>NoGradient no_gradient<T: f32 | f64>(x: T[... d], gamma: T[d], *, alpha: f32 = 1.5)"
        " -> (y: T[... d]) batchable",
        "check     verdict  what was seen (→ what to do)",
        "invalid   ok       6 wrong calls refused",
        "gradient  FAILED   NoGradient has no gradient",
        f"{' ' * 19}→ write one under @no_gradient.gradient, or call no_gradient.differentiate_reference(); raise",
        f"{' ' * 19}  NotImplementedError there if the op cannot have one",
        "1 of 2 checks FAILED",
    ]


def test_scalars(planted):
    with pytest.raises(custom_ops.OpCheckError, match=r"NaN in x at \[\]: y is 0.0 at \[\]"):
        custom_ops.opcheck(planted.swallows_nan, 0.5, checks=["nan"])


def test_wrong_use(planted):
    with pytest.raises(ValueError, match=r"unknown checks gradiant; there are .*gradient"):
        custom_ops.opcheck(planted.right, *SCALE, checks=["gradiant"])
    with pytest.raises(ValueError, match="its dimension d must be 8 as in x"):
        custom_ops.opcheck(planted.right, MATRIX, ROW[:3])
    with pytest.raises(TypeError, match="the signature is right"):
        custom_ops.opcheck(planted.right, MATRIX)
    with pytest.raises(TypeError, match=r"opcheck takes an op or a function that calls one op; .* calls none"):
        custom_ops.opcheck(tf.square, MATRIX)


LISTS = """#include "tftoolkit/op.h"
using F32 = ffi::Buffer<ffi::F32>;
// Every x plus the bias, if there is one; SKIP rows at the end are left out.
static ffi::Error Shift(F32 bias, ffi::RemainingArgs xs, ffi::RemainingRets ys, bool has_bias) {
  for (size_t i = 0; i < xs.size(); ++i) {
    auto x = xs.get<F32>(i);
    auto y = ys.get<F32>(i);
    if (!x || !y) return ffi::Error::InvalidArgument("not float32");
    for (size_t j = 0; j + SKIP < x->element_count(); ++j)
      (*y)->typed_data()[j] = x->typed_data()[j] + (has_bias ? bias.typed_data()[0] : 0.0f);
  }
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(Cpu, Shift, ffi::Ffi::Bind().Arg<F32>().RemainingArgs().RemainingRets().Attr<bool>("has_bias"));
TK_OP(Shift, "(bias?: f32[], *xs: f32[...]) -> (*ys: f32[...])");
TK_KERNEL(Shift, CPU, Cpu);
"""


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    (tmp_path / "good-shift.cc").write_text(LISTS.replace("SKIP", "0"))
    assert cli.main(["ops", "check", str(tmp_path / "good-shift.cc")]) == 0
    output = capsys.readouterr().out
    assert "opcheck of Good>Shift shift(bias?: f32[], *xs: f32[...])" in output
    assert "no check failed" in output
    (tmp_path / "bad.cc").write_text(LISTS.replace("SKIP", "1"))
    library = custom_ops.load("Bad", [tmp_path / "bad.cc"])
    assert cli.main(["ops", "check", str(library.path)]) == 1
    assert re.search(r"written +FAILED +as given: ys\[0\] \(1 of 3 elements", capsys.readouterr().out)


def test_a_file_that_is_not_there_on_the_command_line():
    with pytest.raises(FileNotFoundError, match=r"no such file: gone\.so; it is no built-in op either, those are "):
        cli.run(["ops", "check", "gone.so"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "op"),
    [
        ("swiglu", "SwigluGrad"),
        pytest.param("adamw", "AdamW", marks=pytest.mark.exhaustive),
        pytest.param("rand_augment", "RandAugment", marks=pytest.mark.exhaustive),
    ],
)
def test_a_built_in_op_on_the_command_line(capsys, folder, op):
    assert cli.main(["ops", "check", folder]) == 0
    assert f"opcheck of TfToolkit>{op} " in capsys.readouterr().out


def test_integers_may_be_those_of_the_naive_computation() -> None:
    exact, naive = np.array([85, 7], np.uint8), np.array([84, 7], np.uint8)
    assert difference(naive, exact, 0.0, naive) == ""
    assert "should be 7" in difference(np.array([85, 8], np.uint8), exact, 0.0, naive)
    assert difference(naive, exact, 0.0)
