// Dropout and the sum with a residual, and the gradient, on CUDA; dropout_add.cc has the maths, mask.h the mask, which
// is the CPU's, bit for bit. A thread makes the bits of 16 bytes of elements, which are whole counters, and applies
// them.
//
// Traffic: x, residual and y forward, dy and dx backward, once each, in one launch: the floor. The key is read by the
// kernel: the host would have to wait for it. Ten rounds of Philox are 80 instructions for four elements.

#include <cstdint>

#include "mask.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/dispatch.h"

namespace {

using tftoolkit::Data;
using Result = ffi::Result<ffi::AnyBuffer>;
namespace cuda = tftoolkit::cuda;
namespace dropout = tftoolkit::dropout;

constexpr int kThreads = 256;

// No residual: it is 0.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    Apply(const T* x, const T* residual, cuda::Integers numbers, T* y, int64_t n, dropout::Rate rate, bool packed) {
  constexpr int kStep = cuda::kPack<T>;
  const dropout::Key key = dropout::SplitKey(numbers);
  const int64_t stride = int64_t{gridDim.x} * kThreads * kStep;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kStep; i < n; i += stride) {
    cuda::Values<T> values = cuda::LoadValues(x, i, n, packed);
    cuda::Values<T> others{};
    if (residual) others = cuda::LoadValues(residual, i, n, packed);
#pragma unroll
    for (int j = 0; j < kStep; j += 4) {
      const tftoolkit::PhiloxWords words = dropout::FourBits(key, static_cast<uint64_t>(i + j) / 4);
      const uint32_t bits[4] = {words.a, words.b, words.c, words.d};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        // Of a number that is not kept, NaN too, nothing is left.
        const float kept = bits[k] >= rate.threshold ? values.at[j + k] * rate.scale : 0.0f;
        values.at[j + k] = others.at[j + k] + kept;
      }
    }
    cuda::StoreValues(values, y, i, n, packed);
  }
}

ffi::Error Run(cudaStream_t stream, const ffi::AnyBuffer& x, const ffi::AnyBuffer* residual, const ffi::AnyBuffer& key,
               Result& y, double given) {
  dropout::Rate rate{};
  if (ffi::Error error = dropout::CheckedRate(given, rate); error.failure()) return error;
  const int64_t n = x.element_count();
  if (n == 0) return ffi::Error::Success();
  return tftoolkit::WithFloatType("DropoutAdd", x.element_type(), [&](auto type) {
    using T = decltype(type);
    const T* from = Data<T>(x);
    const T* others = residual ? Data<T>(*residual) : nullptr;
    T* to = Data<T>(y);
    const unsigned blocks = tftoolkit::GridBlocks(cuda::Ceil(n, kThreads * cuda::kPack<T>), 1 << 20);
    const bool packed = cuda::Packed<T>(0, from, others, to);
    Apply<T><<<blocks, kThreads, 0, stream>>>(from, others, cuda::Integers(key), to, n, rate, packed);
    return cuda::Launched();
  });
}

ffi::Error DropoutAdd(cudaStream_t stream, ffi::AnyBuffer x, ffi::AnyBuffer residual, ffi::AnyBuffer key, Result y,
                      double rate) {
  return Run(stream, x, &residual, key, y, rate);
}

ffi::Error DropoutAddGrad(cudaStream_t stream, ffi::AnyBuffer dy, ffi::AnyBuffer key, Result dx, double rate) {
  return Run(stream, dy, nullptr, key, dx, rate);
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(DropoutAddCuda, DropoutAdd,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("rate"),
                       {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER(DropoutAddGradCuda, DropoutAddGrad,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::PlatformStream<cudaStream_t>>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("rate"),
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(DropoutAdd, CUDA, DropoutAddCuda);
TK_KERNEL(DropoutAddGrad, CUDA, DropoutAddGradCuda);
