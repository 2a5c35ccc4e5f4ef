// Gated linear units on CUDA; gate.h has the maths, activations.h the activations, both as on the CPU. An element is
// computed by itself, 16 bytes of each tensor at a time.
//
// Traffic: what gate.h calls the floor, 3 tensors forward and 5 backward, in one launch each. A GPU that moves 3 TB/s
// has time for some 50 instructions per bfloat16 element: silu takes 30, gelu 70 (counted in what nvcc makes for
// sm_90), so that one is bound by arithmetic.

#ifndef TFTOOLKIT_GATE_CUDA_H_
#define TFTOOLKIT_GATE_CUDA_H_

#include <cstdint>

#include "tftoolkit/activations.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace tftoolkit {
namespace gate {

constexpr int kThreads = 256;

template <typename F, typename T>
__global__ void __launch_bounds__(kThreads) Forward(const T* gate, const T* up, T* y, int64_t n, bool packed) {
  constexpr int kStep = cuda::kPack<T>;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kStep;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kStep; i < n; i += stride) {
    const cuda::Values<T> gates = cuda::LoadValues(gate, i, n, packed);
    cuda::Values<T> values = cuda::LoadValues(up, i, n, packed);
#pragma unroll
    for (int j = 0; j < kStep; ++j) values.at[j] *= F::Of(gates.at[j]).value;
    cuda::StoreValues(values, y, i, n, packed);
  }
}

template <typename F, typename T>
__global__ void __launch_bounds__(kThreads)
    Backward(const T* dy, const T* gate, const T* up, T* dgate, T* dup, int64_t n, bool packed) {
  constexpr int kStep = cuda::kPack<T>;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kStep;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kStep; i < n; i += stride) {
    const cuda::Values<T> above = cuda::LoadValues(dy, i, n, packed);
    cuda::Values<T> gates = cuda::LoadValues(gate, i, n, packed);
    cuda::Values<T> ups = cuda::LoadValues(up, i, n, packed);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const Activation f = F::Of(gates.at[j]);
      gates.at[j] = above.at[j] * ups.at[j] * f.slope;
      ups.at[j] = above.at[j] * f.value;
    }
    cuda::StoreValues(gates, dgate, i, n, packed);
    cuda::StoreValues(ups, dup, i, n, packed);
  }
}

// At most 2^20 blocks, which stride over what they leave.
template <typename T>
unsigned Blocks(int64_t n) {
  return GridBlocks(cuda::Ceil(n, kThreads * cuda::kPack<T>), 1 << 20);
}

template <typename F>
ffi::Error LaunchForward(cudaStream_t stream, const char* op, const ffi::AnyBuffer& gate, const ffi::AnyBuffer& up,
                         ffi::Result<ffi::AnyBuffer>& y) {
  const int64_t n = gate.element_count();
  if (n == 0) return ffi::Error::Success();
  return WithFloatType(op, gate.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* gates = Data<T>(gate);
    const T* ups = Data<T>(up);
    T* ys = Data<T>(y);
    Forward<F, T><<<Blocks<T>(n), kThreads, 0, stream>>>(gates, ups, ys, n, cuda::Packed<T>(0, gates, ups, ys));
    return cuda::Launched();
  });
}

template <typename F>
ffi::Error LaunchBackward(cudaStream_t stream, const char* op, const ffi::AnyBuffer& dy, const ffi::AnyBuffer& gate,
                          const ffi::AnyBuffer& up, ffi::Result<ffi::AnyBuffer>& dgate,
                          ffi::Result<ffi::AnyBuffer>& dup) {
  const int64_t n = gate.element_count();
  if (n == 0) return ffi::Error::Success();
  return WithFloatType(op, gate.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* dys = Data<T>(dy);
    const T* gates = Data<T>(gate);
    const T* ups = Data<T>(up);
    T* dgates = Data<T>(dgate);
    T* dups = Data<T>(dup);
    const bool packed = cuda::Packed<T>(0, dys, gates, ups, dgates, dups);
    Backward<F, T><<<Blocks<T>(n), kThreads, 0, stream>>>(dys, gates, ups, dgates, dups, n, packed);
    return cuda::Launched();
  });
}

}  // namespace gate
}  // namespace tftoolkit

#endif  // TFTOOLKIT_GATE_CUDA_H_
