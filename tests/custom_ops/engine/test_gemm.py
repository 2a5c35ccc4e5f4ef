"""The products of gemm.h in every instruction set that the processor has, against float64."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops

pytestmark = pytest.mark.slow  # it compiles three instruction sets

SOURCE = """
#include <algorithm>
#include <cstdint>
#include <vector>
#include "tftoolkit/float_types.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/op.h"

using tftoolkit::Isa;

// C = AB, 2 C + AB or C + AB, into panels of columns; A is read as it is or transposed.
#define RUN(name)                                                                                              \\
  static void name(int64_t rows, int64_t panels, int64_t depth, Elements a, const float* b, float* c, int into) { \\
    const int64_t step = panels * kPanel;                                                                      \\
    const std::vector<float> alpha(kPanel, 2.0f);                                                              \\
    if (into == 0) Product<Into::kStore>(rows, panels, depth, a, b, step, c, step);                            \\
    if (into == 1) Product<Into::kAdd>(rows, panels, depth, a, b, step, c, step);                              \\
    if (into == 2) Product<Into::kScale>(rows, panels, depth, a, b, step, c, step, alpha.data());              \\
  }
#define TK_LANES 4
namespace baseline {
#include "tftoolkit/gemm.h"
RUN(Run)
}
#undef TK_LANES
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TK_LANES 8
namespace avx2 {
#include "tftoolkit/gemm.h"
RUN(Run)
}
#undef TK_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TK_LANES 16
namespace avx512 {
#include "tftoolkit/gemm.h"
RUN(Run)
}
#undef TK_LANES
#pragma GCC pop_options

using F32 = ffi::Buffer<ffi::F32>;
static ffi::Error Gemm(F32 a, F32 b, F32 c, ffi::ResultBuffer<ffi::F32> d, bool transposed, int64_t into,
                       int64_t lanes) {
  const int64_t rows = c.dimensions()[0], depth = b.dimensions()[0], panels = b.dimensions()[1] / (2 * lanes);
  const int64_t row = transposed ? 1 : depth, step = transposed ? rows : 1;
  std::copy_n(c.typed_data(), c.element_count(), d->typed_data());
  const float* x = a.typed_data();
  if (lanes == 4) baseline::Run(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  if (lanes == 8) avx2::Run(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  if (lanes == 16) avx512::Run(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(GemmCpu, Gemm,
                       ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>().Attr<bool>("transposed")
                           .Attr<int64_t>("into").Attr<int64_t>("lanes"));
TK_OP(Gemm, "(a: f32[n m], b: f32[k columns], c: f32[rows columns], *, transposed: bool, into: i64, lanes: i64)"
            " -> (d: f32[rows columns])");
TK_KERNEL(Gemm, CPU, GemmCpu);

static ffi::Error Best(F32, ffi::ResultBuffer<ffi::F32> lanes) {
  *lanes->typed_data() = 4 << static_cast<int>(tftoolkit::BestIsa());
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(BestCpu, Best, ffi::Ffi::Bind().Arg<F32>().Ret<F32>());
TK_OP(Best, "(x: f32[]) -> (lanes: f32[])");
TK_KERNEL(Best, CPU, BestCpu);
"""


@pytest.fixture(scope="module")
def library():
    return custom_ops.load_inline("GemmTest", SOURCE)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("into", [0, 1, 2])
def test_products_are_sums_in_their_order(library, lanes, transposed, into):
    if lanes > library.best(0.0):
        pytest.skip(f"this processor has no vectors of {lanes} floats")
    rng = np.random.default_rng(0)
    for rows in (*range(1, 18), 96):
        for depth in (0, 1, 7, 64):
            for panels in (1, 3):
                a, b, c = (
                    rng.standard_normal(shape).astype(np.float32)
                    for shape in ((rows, depth), (depth, panels * 2 * lanes), (rows, panels * 2 * lanes))
                )
                found = library.gemm(
                    tf.constant(a.T.copy() if transposed else a), b, c, transposed=transposed, into=into, lanes=lanes
                )
                right = a.astype(np.float64) @ b + (0, 1, 2)[into] * c.astype(np.float64)
                # A sum of n terms errs by at most n roundings of the sum of their sizes.
                bound = (depth + 2) * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b) + 2 * np.abs(c))
                assert (np.abs(found - right) <= bound).all()
