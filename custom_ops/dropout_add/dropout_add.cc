// Dropout and the sum with a residual in one pass, and the gradient, on the CPU:
//
//   y = residual + (keep ? x / (1 - rate) : 0)        dx = keep ? dy / (1 - rate) : 0
//
// An element is kept if 32 random bits are at least rate * 2^32. The bits of element i (counted through the tensor) are
// word i mod 4 of Philox4x32-10 at counter i / 4: a function of key and index alone, whatever the number of threads,
// and however rows are split. The key's numbers are 64 bits each: their lower halves are Philox's key, the upper ones
// the upper half of the counter.
//
// The floor is memory traffic: forward reads x and residual and writes y, backward reads dy and writes dx, once each;
// the mask is computed again rather than stored. On AVX2 the ten rounds of Philox cost about 2 ns per element and core,
// which is more than the traffic does.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/philox.h"
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

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs; a multiple of a chunk
constexpr int64_t kChunk = 1 << 9;             // elements whose bits are made at a time; they stay in the first cache

// Which elements are kept, and what they are multiplied by.
struct Mask {
  uint32_t key[2], upper[2];
  uint32_t threshold;
  float scale;
};

// For a chunk of elements, from `first` on, all bits set or none: so that a kept number stays, and of others, NaN too,
// nothing is left.
TK_INLINE void Bits(const Mask& mask, int64_t first, uint32_t* bits) {
  const uint32_t key_0 = mask.key[0], key_1 = mask.key[1], upper_0 = mask.upper[0], upper_1 = mask.upper[1];
  const uint32_t threshold = mask.threshold;
  const uint64_t counter = static_cast<uint64_t>(first) / 4;
#pragma omp simd
  for (int64_t i = 0; i < kChunk / 4; ++i) {
    const uint64_t now = counter + i;
    const PhiloxWords words = tftoolkit::Philox(
        {static_cast<uint32_t>(now), static_cast<uint32_t>(now >> 32), upper_0, upper_1}, key_0, key_1);
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
  const float scale = mask.scale;
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
  if (!(rate >= 0 && rate < 1)) {
    return ffi::Error::InvalidArgument("rate must be at least 0 and less than 1, but is " + std::to_string(rate));
  }
  Mask mask{};
  mask.threshold = static_cast<uint32_t>(std::min(std::round(rate * 4294967296.0), 4294967295.0));
  mask.scale = static_cast<float>(1 / (1 - rate));
  const auto split = [&](auto type) {
    for (int i = 0; i < 2; ++i) {
      const uint64_t number = static_cast<uint64_t>(int64_t{Data<decltype(type)>(key)[i]});
      mask.key[i] = static_cast<uint32_t>(number);
      mask.upper[i] = static_cast<uint32_t>(number >> 32);
    }
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
