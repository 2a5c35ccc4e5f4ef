// AdamW on CUDA; adamw.cc has the maths and what must be moved. Every element is computed by itself, four at a time.
//
// Traffic: the floor. `apply`, `rate` and `t` are read where they are, on the device, so the host waits for nothing;
// the corrections of the moments, two exponentials, are computed by each thread for the 32 elements that it takes of a
// chunk. One launch for some hundred weights.

#include <cmath>

#include "lists.h"
#include "tftoolkit/cuda.h"
#include "tftoolkit/tensor_batch.h"

namespace {

namespace cuda = tftoolkit::cuda;
using F32 = ffi::Buffer<ffi::F32>;

constexpr int kThreads = 256;
constexpr int64_t kChunk = 1 << 13;

template <typename T, typename G>
using Batch = cuda::TensorBatch<adamw::Weight<T, G>, kChunk>;

// Of 1 - beta and of the logarithms only float64 knows all digits.
struct Rule {
  double log_beta_1, log_beta_2;
  float beta_1, beta_2, rest_1, rest_2, epsilon;

  Rule(double beta_1, double beta_2, float epsilon)
      : log_beta_1(std::log(beta_1)),
        log_beta_2(std::log(beta_2)),
        beta_1(static_cast<float>(beta_1)),
        beta_2(static_cast<float>(beta_2)),
        rest_1(static_cast<float>(1 - beta_1)),
        rest_2(static_cast<float>(1 - beta_2)),
        epsilon(epsilon) {}
};

// 1 / (1 - beta^t). The logarithm of 0 is minus infinity, to which the power is 0.
__device__ __forceinline__ float Correction(double log_beta, float t) {
  return -1.0f / expm1f(static_cast<float>(t * log_beta));
}

// What the weight is before the update: its master, unless the weight is no longer the rounding of that.
template <typename T>
__device__ __forceinline__ float Before(float w, float master) {
  const float rounded = tftoolkit::Load(tftoolkit::Store<T>(master));
  return tftoolkit::FloatBits(rounded) == tftoolkit::FloatBits(w) ? master : w;
}

template <bool kMaster, typename T, typename G>
__global__ void __launch_bounds__(kThreads)
    Update(const __grid_constant__ Batch<T, G> batch, Rule rule, const bool* apply, const float* rate, const float* t) {
  if (!*apply) return;  // every output holds its input already
  const float scale_1 = Correction(rule.log_beta_1, *t), scale_2 = Correction(rule.log_beta_2, *t);
  for (int64_t chunk = blockIdx.x; chunk < batch.chunks(); chunk += gridDim.x) {
    const typename Batch<T, G>::Piece piece = batch.Find(chunk);
    const adamw::Weight<T, G>& weight = batch.tensors[piece.tensor];
    const float step = *rate * weight.rate_factor, decay = weight.decay;
    const bool aligned = cuda::IsAligned(weight.w) && cuda::IsAligned(weight.m) && cuda::IsAligned(weight.v) &&
                         cuda::IsAligned(weight.master) && cuda::IsAligned(weight.g);
    for (int64_t i = piece.begin + 4 * threadIdx.x; i < piece.end; i += 4 * kThreads) {
      float w[4], m[4], v[4], master[4], g[4];
      cuda::LoadFour(weight.w, i, piece.end, aligned, w);
      cuda::LoadFour(weight.m, i, piece.end, aligned, m);
      cuda::LoadFour(weight.v, i, piece.end, aligned, v);
      cuda::LoadFour(weight.g, i, piece.end, aligned, g);
      if constexpr (kMaster) cuda::LoadFour(weight.master, i, piece.end, aligned, master);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        m[j] = rule.beta_1 * m[j] + rule.rest_1 * g[j];
        v[j] = rule.beta_2 * v[j] + rule.rest_2 * (g[j] * g[j]);
        const float direction = m[j] * scale_1 / (sqrtf(v[j] * scale_2) + rule.epsilon);
        if constexpr (kMaster) w[j] = Before<T>(w[j], master[j]);
        w[j] -= step * (direction + decay * w[j]);
      }
      cuda::StoreFour(m, weight.m, i, piece.end, aligned);
      cuda::StoreFour(v, weight.v, i, piece.end, aligned);
      cuda::StoreFour(w, weight.w, i, piece.end, aligned);
      if constexpr (kMaster) cuda::StoreFour(w, weight.master, i, piece.end, aligned);
    }
  }
}

template <bool kMaster>
ffi::Error AdamW(cudaStream_t stream, ffi::Buffer<ffi::PRED> apply, F32 rate, F32 t, ffi::RemainingArgs inputs,
                 ffi::RemainingRets outputs, double beta_1, double beta_2, float epsilon,
                 ffi::Span<const float> rate_factors, ffi::Span<const float> weight_decays) {
  const adamw::Lists<kMaster> lists(inputs, outputs, rate_factors, weight_decays);
  if (ffi::Error error = lists.Check(); error.failure()) return error;
  const Rule rule(beta_1, beta_2, epsilon);
  return lists.WithTypes([&](auto weight_type, auto gradient_type) {
    using T = decltype(weight_type);
    using G = decltype(gradient_type);
    const auto get = [&](int64_t i) { return lists.template At<T, G>(i); };
    cuda::InBatches<Batch<T, G>>(lists.count(), get, [&](const Batch<T, G>& batch) {
      Update<kMaster, T, G><<<tftoolkit::GridBlocks(batch.chunks(), 1 << 20), kThreads, 0, stream>>>(
          batch, rule, apply.typed_data(), rate.typed_data(), t.typed_data());
    });
    return cuda::Launched();
  });
}

}  // namespace

// Command-buffer compatible: the same launches for the same shapes, so XLA may replay them as a CUDA graph.
XLA_FFI_DEFINE_HANDLER(AdamWCuda, AdamW<false>,
                       ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().TK_ADAMW_ARGUMENTS,
                       {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(AdamWMasterCuda, AdamW<true>,
                       ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>().TK_ADAMW_ARGUMENTS,
                       {ffi::Traits::kCmdBufferCompatible});

TK_KERNEL(AdamW, CUDA, AdamWCuda);
TK_KERNEL(AdamWMaster, CUDA, AdamWMasterCuda);
