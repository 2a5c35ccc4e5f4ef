// Gated linear units on the CPU, forward and backward: what the ops for each activation share. Per element, in float32:
//
//   y = f(gate) * up        dgate = dy * up * f'(gate)        dup = dy * f(gate)
//
// The floor is memory traffic: forward reads gate and up and writes y, backward reads dy, gate and up and writes dgate
// and dup, each once; f is computed again rather than stored. Every element is computed by itself, so the result does
// not depend on the number of threads.

#ifndef TFTOOLKIT_GATE_H_
#define TFTOOLKIT_GATE_H_

#include <cstdint>

#include "tftoolkit/activations.h"
#include "tftoolkit/dispatch.h"
#include "tftoolkit/parallel.h"
#include "tftoolkit/simd.h"

namespace tftoolkit {
namespace gate {

constexpr int64_t kElementsPerTask = 1 << 15;  // tens of µs: well above the price of a task

// F: one of activations.h.
template <typename F, typename T>
TK_INLINE void Forward(const T* gate, const T* up, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = Store<T>(F::Of(Load(gate[i])).value * Load(up[i]));
}

template <typename F, typename T>
TK_INLINE void Backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const Activation f = F::Of(Load(gate[i]));
    const float above = Load(dy[i]);
    dgate[i] = Store<T>(above * Load(up[i]) * f.slope);
    dup[i] = Store<T>(above * f.value);
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
