// Gated linear units on the CPU, forward and backward: what the ops for each activation share. Per element, in float32:
//
//   y = f(gate) * up        dgate = dy * up * f'(gate)        dup = dy * f(gate)
//
// The floor is memory traffic: forward reads gate and up and writes y, backward reads dy, gate and up and writes dgate
// and dup, each once; f is computed again rather than stored. Every element is computed by itself, so the result does
// not depend on the number of threads.

#ifndef TFTOOLKIT_GATE_H_
#define TFTOOLKIT_GATE_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "tftoolkit/activations.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace gate {

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs: well above the price of a task

constexpr int64_t kBlock = 512;  // floats; all blocks of a call fit in the first cache

// F: one of activations.h.
template <typename F, typename T>
TK_INLINE void Forward(const T* gate, const T* up, T* y, int64_t n) {
  if constexpr (std::is_same_v<T, float>) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) y[i] = F::Of(gate[i]).value * up[i];
  } else {
    float gates[kBlock], ups[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t size = std::min(kBlock, n - begin);
      LoadBlock(gate + begin, gates, size);
      LoadBlock(up + begin, ups, size);
      Forward<F, float>(gates, ups, gates, size);
      StoreBlock(gates, y + begin, size);
    }
  }
}

// dgate and dup may take the place of gate and up.
template <typename F, typename T>
TK_INLINE void Backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
  if constexpr (std::is_same_v<T, float>) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const Activation f = F::Of(gate[i]);
      const float above = dy[i];
      dgate[i] = above * up[i] * f.slope;
      dup[i] = above * f.value;
    }
  } else {
    float above[kBlock], gates[kBlock], ups[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t size = std::min(kBlock, n - begin);
      LoadBlock(dy + begin, above, size);
      LoadBlock(gate + begin, gates, size);
      LoadBlock(up + begin, ups, size);
      Backward<F, float>(above, gates, ups, gates, ups, size);
      StoreBlock(gates, dgate + begin, size);
      StoreBlock(ups, dup + begin, size);
    }
  }
}

// Calls elements(gate, up, y, n), a TK_SIMD function that holds Forward, for parts of the tensors.
template <typename Elements>
ffi::Error RunForward(ffi::ThreadPool& pool, const char* op, const ffi::AnyBuffer& gate, const ffi::AnyBuffer& up,
                      ffi::Result<ffi::AnyBuffer>& y, const Elements& elements) {
  return WithFloatType(op, gate.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* gates = Data<T>(gate);
    const T* ups = Data<T>(up);
    T* ys = Data<T>(y);
    ParallelRanges(pool, gate.element_count(), kElementsPerTask,
                   [=, &elements](int64_t begin, int64_t n) { elements(gates + begin, ups + begin, ys + begin, n); });
    return ffi::Error::Success();
  });
}

// Calls elements(dy, gate, up, dgate, dup, n), a TK_SIMD function that holds Backward.
template <typename Elements>
ffi::Error RunBackward(ffi::ThreadPool& pool, const char* op, const ffi::AnyBuffer& dy, const ffi::AnyBuffer& gate,
                       const ffi::AnyBuffer& up, ffi::Result<ffi::AnyBuffer>& dgate, ffi::Result<ffi::AnyBuffer>& dup,
                       const Elements& elements) {
  return WithFloatType(op, gate.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* dys = Data<T>(dy);
    const T* gates = Data<T>(gate);
    const T* ups = Data<T>(up);
    T* dgates = Data<T>(dgate);
    T* dups = Data<T>(dup);
    ParallelRanges(pool, gate.element_count(), kElementsPerTask, [=, &elements](int64_t begin, int64_t n) {
      elements(dys + begin, gates + begin, ups + begin, dgates + begin, dups + begin, n);
    });
    return ffi::Error::Success();
  });
}

}  // namespace gate
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GATE_H_
