"""The products of gemm.h, and the pairs of operands.h, in every instruction set of the processor, against float64."""

import numpy as np
import pytest
import tensorflow as tf

from tftoolkit import custom_ops

pytestmark = pytest.mark.slow  # it compiles three instruction sets

SOURCE = """
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#include "tftoolkit/float_types.h"
#include "tftoolkit/isa.h"
#include "tftoolkit/op.h"

using tftoolkit::Isa;

// C = AB, C + AB, 2 C + AB or 2 AB, into panels of columns; A is read as it is or transposed.
#define RUN                                                                                                    \\
  template <typename Element>                                                                                  \\
  void Run(int64_t rows, int64_t panels, int64_t steps, Elements<Element> a, const Element* b, float* c, int into) { \\
    const int64_t step = panels * kPanel;                                                                      \\
    const std::vector<float> alpha(kPanel, 2.0f);                                                              \\
    if (into == 0) Product<Into::kStore>(rows, panels, steps, a, b, step, c, step);                            \\
    if (into == 1) Product<Into::kAdd>(rows, panels, steps, a, b, step, c, step);                              \\
    if (into == 2) Product<Into::kScale>(rows, panels, steps, a, b, step, c, step, alpha.data());              \\
    if (into == 3) Product<Into::kTimes>(rows, panels, steps, a, b, step, c, step, alpha.data());              \\
  }                                                                                                            \\
  /* Of bfloat16; B's columns are panels. */                                                                   \\
  void RunPairs(int64_t rows, int64_t panels, int64_t depth, const void* a, bool transposed, const void* b, float* c, \\
                int into) {                                                                                    \\
    const auto type = tftoolkit::FloatType::kBFloat16;                                                         \\
    const int64_t steps = Steps<Pair>(depth), columns = panels * kPanel;                                       \\
    std::vector<Pair> x(rows * steps + 1), y(columns * steps + 1);                                             \\
    if (transposed) {                                                                                          \\
      PackSteps(type, a, [&](int64_t r) { return r * rows; }, depth, rows, x.data(), rows);                    \\
    } else {                                                                                                   \\
      PackRows(type, a, 0, depth, rows, depth, x.data(), steps);                                               \\
    }                                                                                                          \\
    PackSteps(type, b, [&](int64_t r) { return r * columns; }, depth, columns, y.data(), columns);             \\
    Run<Pair>(rows, panels, steps, {x.data(), transposed ? 1 : steps, transposed ? rows : 1}, y.data(), c, into); \\
  }                                                                                                            \\
  /* In place; `tile` gets the pairs. */                                                                       \\
  void ToOperand(float* tile, int64_t rows, int64_t columns, bool as_rows) {                                   \\
    if (as_rows) AsRows<Pair>(tile, rows, columns, columns);                                                   \\
    if (!as_rows) AsSteps<Pair>(tile, rows, columns, columns, tile);                                           \\
  }
#define TK_LANES 4
namespace baseline {
#include "tftoolkit/gemm.h"
#include "tftoolkit/packing.h"
#include "tftoolkit/operands.h"
RUN
}
#undef TK_LANES
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TK_LANES 8
namespace avx2 {
#include "tftoolkit/gemm.h"
#include "tftoolkit/packing.h"
#include "tftoolkit/operands.h"
RUN
}
#undef TK_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TK_LANES 16
namespace avx512 {
#include "tftoolkit/gemm.h"
#include "tftoolkit/packing.h"
#include "tftoolkit/operands.h"
RUN
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
  if (lanes == 4) baseline::Run<float>(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  if (lanes == 8) avx2::Run<float>(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  if (lanes == 16) avx512::Run<float>(rows, panels, depth, {x, row, step}, b.typed_data(), d->typed_data(), into);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(GemmCpu, Gemm,
                       ffi::Ffi::Bind().Arg<F32>().Arg<F32>().Arg<F32>().Ret<F32>().Attr<bool>("transposed")
                           .Attr<int64_t>("into").Attr<int64_t>("lanes"));
TK_OP(Gemm, "(a: f32[n m], b: f32[k columns], c: f32[rows columns], *, transposed: bool, into: i64, lanes: i64)"
            " -> (d: f32[rows columns])");
TK_KERNEL(Gemm, CPU, GemmCpu);

using BF16 = ffi::Buffer<ffi::BF16>;
static ffi::Error PairGemm(BF16 a, BF16 b, F32 c, ffi::ResultBuffer<ffi::F32> d, bool transposed, int64_t into,
                           int64_t lanes) {
  const int64_t rows = c.dimensions()[0], depth = b.dimensions()[0], panels = b.dimensions()[1] / (2 * lanes);
  std::copy_n(c.typed_data(), c.element_count(), d->typed_data());
  const void *x = a.untyped_data(), *y = b.untyped_data();
  if (lanes == 4) baseline::RunPairs(rows, panels, depth, x, transposed, y, d->typed_data(), into);
  if (lanes == 8) avx2::RunPairs(rows, panels, depth, x, transposed, y, d->typed_data(), into);
  if (lanes == 16) avx512::RunPairs(rows, panels, depth, x, transposed, y, d->typed_data(), into);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(PairGemmCpu, PairGemm,
                       ffi::Ffi::Bind().Arg<BF16>().Arg<BF16>().Arg<F32>().Ret<F32>().Attr<bool>("transposed")
                           .Attr<int64_t>("into").Attr<int64_t>("lanes"));
TK_OP(PairGemm, "(a: bf16[n m], b: bf16[k columns], c: f32[rows columns], *, transposed: bool, into: i64, lanes: i64)"
                " -> (d: f32[rows columns])");
TK_KERNEL(PairGemm, CPU, PairGemmCpu);

static ffi::Error Pairs(F32 tile, ffi::ResultBuffer<ffi::F32> pairs, bool as_rows, int64_t lanes) {
  const int64_t rows = tile.dimensions()[0], columns = tile.dimensions()[1];
  std::copy_n(tile.typed_data(), tile.element_count(), pairs->typed_data());
  if (lanes == 4) baseline::ToOperand(pairs->typed_data(), rows, columns, as_rows);
  if (lanes == 8) avx2::ToOperand(pairs->typed_data(), rows, columns, as_rows);
  if (lanes == 16) avx512::ToOperand(pairs->typed_data(), rows, columns, as_rows);
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(PairsCpu, Pairs,
                       ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Attr<bool>("as_rows").Attr<int64_t>("lanes"));
TK_OP(Pairs, "(tile: f32[rows columns], *, as_rows: bool, lanes: i64) -> (pairs: f32[rows columns])");
TK_KERNEL(Pairs, CPU, PairsCpu);

static ffi::Error Best(F32, ffi::ResultBuffer<ffi::F32> lanes, ffi::ResultBuffer<ffi::F32> pairs) {
  *lanes->typed_data() = 4 << static_cast<int>(tftoolkit::BestIsa());
  *pairs->typed_data() = tftoolkit::HasBf16Products();
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER(BestCpu, Best, ffi::Ffi::Bind().Arg<F32>().Ret<F32>().Ret<F32>());
TK_OP(Best, "(x: f32[]) -> (lanes: f32[], pairs: f32[])");
TK_KERNEL(Best, CPU, BestCpu);
"""


@pytest.fixture(scope="module")
def library():
    return custom_ops.load_inline("GemmTest", SOURCE)


def skip_without(library, lanes, pairs=False):
    best = library.best(0.0)
    if lanes > best.lanes:
        pytest.skip(f"this processor has no vectors of {lanes} floats")
    if pairs and lanes == 16 and not best.pairs:
        pytest.skip("this processor has no AVX512-BF16")


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("into", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16], ids=lambda dtype: dtype.name)
def test_products_are_sums_in_their_order(library, lanes, transposed, into, dtype):
    skip_without(library, lanes, dtype == tf.bfloat16)
    product = library.gemm if dtype == tf.float32 else library.pair_gemm
    rng = np.random.default_rng(0)
    for rows in (*range(1, 18), 96):
        for depth in (0, 1, 7, 64):
            for panels in (1, 3):
                a, b = (
                    tf.cast(rng.standard_normal(shape), dtype) for shape in ((rows, depth), (depth, panels * 2 * lanes))
                )
                c = rng.standard_normal((rows, panels * 2 * lanes)).astype(np.float32)
                found = product(
                    tf.transpose(a) if transposed else a, b, c, transposed=transposed, into=into, lanes=lanes
                )
                a, b = (tf.cast(matrix, tf.float64).numpy() for matrix in (a, b))
                times, kept = (1, 1, 1, 2)[into], (0, 1, 2, 0)[into]
                # A sum of n terms errs by at most n roundings of the sum of their sizes.
                bound = (depth + 2) * 2.0**-24 * times * (np.abs(a) @ np.abs(b) + 2 * np.abs(c))
                assert (np.abs(found - (times * a @ b + kept * c.astype(np.float64))) <= bound).all()


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_floats_are_rounded_to_pairs_of_bfloat16(library, lanes):
    skip_without(library, lanes)
    rng = np.random.default_rng(1)
    columns = 4 * lanes
    tile = rng.integers(0, 2**32, (7, columns), np.uint32)
    tile[::2] &= 0xFFFF8000  # ties, and what lies a half above and below
    tile[0, :8] = 0x7F800000, 0xFF800000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F7FFFFF, 0x80000000, 0x3F808000, 0x3F818000
    floats = tile.view(np.float32)
    right = tf.cast(floats, tf.bfloat16).numpy().view(np.uint16)

    def halves(pairs):
        return pairs.numpy().view(np.uint32).reshape(7, columns, 1).view(np.uint16)

    def same(found, right):
        nan = (right & 0x7FFF) > 0x7F80
        assert (np.where(nan, True, found == right)).all()
        assert ((found[nan] & 0x7FFF) > 0x7F80).all()

    rows = halves(library.pairs(floats, as_rows=True, lanes=lanes))
    same(rows[:, : columns // 2].reshape(7, columns), right)
    steps = halves(library.pairs(floats, as_rows=False, lanes=lanes))[:4]
    same(steps.transpose(0, 2, 1).reshape(8, columns), np.concatenate([right, np.zeros_like(right[:1])]))
