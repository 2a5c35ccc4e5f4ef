// Dropout and the sum with a residual in one pass, and the gradient, on the CPU:
//
//   y = residual + (keep ? x / (1 - rate) : 0)        dx = keep ? dy / (1 - rate) : 0
//
// mask.h says which elements are kept.
//
// The floor is memory traffic: forward reads x and residual and writes y, backward reads dy and writes dx, once each;
// the mask is computed again rather than stored. On AVX2 the ten rounds of Philox cost about 2 ns per element and core,
// which is more than the traffic does.

#include <algorithm>
#include <cstdint>

#include "mask.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace {

using tftoolkit::BFloat16;
using tftoolkit::BitsFloat;
using tftoolkit::Data;
using tftoolkit::FloatBits;
using tftoolkit::Half;
using tftoolkit::Load;
using tftoolkit::PhiloxWords;
using tftoolkit::Store;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace dropout = tftoolkit::dropout;

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs; a multiple of a chunk
constexpr int64_t kChunk = 1 << 9;             // elements whose bits are made at a time; they stay in the first cache

struct Mask {
  dropout::Key key;
  dropout::Rate rate;
};

// For a chunk of elements, from `first` on, all bits set or none: so that a kept number stays, and of others, NaN too,
// nothing is left.
TK_INLINE void Bits(const Mask& mask, int64_t first, uint32_t* bits) {
  const dropout::Key key = mask.key;
  const uint32_t threshold = mask.rate.threshold;
  const uint64_t counter = static_cast<uint64_t>(first) / 4;
#pragma omp simd
  for (int64_t i = 0; i < kChunk / 4; ++i) {
    const PhiloxWords words = dropout::FourBits(key, counter + i);
    bits[4 * i] = words.a;
    bits[4 * i + 1] = words.b;
    bits[4 * i + 2] = words.c;
    bits[4 * i + 3] = words.d;
  }
#pragma omp simd
  for (int64_t i = 0; i < kChunk; ++i) bits[i] = bits[i] >= threshold ? ~0u : 0u;
}

// Elements `first` and following; `x`, `residual` and `y` point at the first of them. No residual: it is 0.
template <typename T>
TK_INLINE void Apply(const T* x, const T* residual, T* y, Mask mask, int64_t first, int64_t count) {
  const float scale = mask.rate.scale;
  uint32_t bits[kChunk];
  for (int64_t done = 0; done < count; done += kChunk, x += kChunk, y += kChunk) {
    const int64_t n = std::min(kChunk, count - done);
    Bits(mask, first + done, bits);
    if (residual) {
      const T* others = residual + done;
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        y[i] = Store<T>(Load(others[i]) + BitsFloat(FloatBits(Load(x[i]) * scale) & bits[i]));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) y[i] = Store<T>(BitsFloat(FloatBits(Load(x[i]) * scale) & bits[i]));
    }
  }
}

// One plain function per dtype: run-time dispatch needs functions, not templates.
#define TK_ELEMENTS(T)                                                                                  \
  TK_SIMD void Elements(const T* x, const T* residual, T* y, Mask mask, int64_t first, int64_t count) { \
    Apply<T>(x, residual, y, mask, first, count);                                                       \
  }
TK_ELEMENTS(float)
TK_ELEMENTS(BFloat16)
TK_ELEMENTS(Half)

ffi::Error Run(ffi::ThreadPool& pool, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual,
               const ffi::AnyBuffer& key, Result& y, double rate) {
  Mask mask{};
  if (ffi::Error error = dropout::CheckedRate(rate, mask.rate); error.failure()) return error;
  const auto split = [&](auto type) {
    mask.key = dropout::SplitKey(Data<decltype(type)>(key));
    return ffi::Error::Success();
  };
  if (ffi::Error error = tftoolkit::WithIntegerType("DropoutAdd", key.element_type(), split); error.failure()) {
    return error;
  }
  return tftoolkit::WithFloatType("DropoutAdd", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(x);
    const T* others = residual ? Data<T>(*residual) : nullptr;
    T* to = Data<T>(y);
    tftoolkit::ParallelRanges(pool, x.element_count(), kElementsPerTask, [&](int64_t begin, int64_t count) {
      Elements(from + begin, others ? others + begin : nullptr, to + begin, mask, begin, count);
    });
    return ffi::Error::Success();
  });
}

ffi::Error DropoutAdd(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer key, Result y,
                      double rate) {
  return Run(pool, x, &residual, key, y, rate);
}

ffi::Error DropoutAddGrad(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer key, Result dx, double rate) {
  return Run(pool, dy, nullptr, key, dx, rate);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER(DropoutAddCpu, DropoutAdd,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("rate"));

XLA_FFI_DEFINE_HANDLER(DropoutAddGradCpu, DropoutAddGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("rate"));

// Not batchable: stacked, elements would have other indices.
TK_OP(DropoutAdd,
      "<T: f32 | bf16 | f16, K: i32 | i64>(x: T[...], residual: T[...], key: K[2], *, rate: f64) -> (y: T[...])");
TK_OP(DropoutAddGrad, "<T: f32 | bf16 | f16, K: i32 | i64>(dy: T[...], key: K[2], *, rate: f64) -> (dx: T[...])");
TK_KERNEL(DropoutAdd, CPU, DropoutAddCpu);
TK_KERNEL(DropoutAddGrad, CPU, DropoutAddGradCpu);
