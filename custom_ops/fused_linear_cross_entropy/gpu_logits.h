// The logits of a chunk and what each tile of classes adds up to, on CUDA; see fused_linear_cross_entropy.cu.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_LOGITS_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_LOGITS_H_

#include <cmath>
#include <limits>

#include "gpu.h"
#include "tftoolkit/gemm_cuda.h"

namespace gpu {

// The rows of the inputs that belong to the tokens of a chunk, as a cuda::Matrix.
template <typename T>
struct Inputs {
  const T* data;
  const Token* tokens;
  int64_t rows, columns;
  bool packed;

  __device__ __forceinline__ const T* Row(int64_t i) const { return data + tokens[i].row * columns; }
};

template <typename T>
__device__ __forceinline__ Inputs<T> InputsOf(const Call& call, const Chunk& chunk) {
  return {static_cast<const T*>(call.inputs), call.tokens + chunk.first, chunk.count, call.terms.depth,
          call.inputs_packed};
}

template <typename T>
__device__ __forceinline__ cuda::Matrix<T> WeightOf(const Call& call) {
  return {static_cast<const T*>(call.weight), call.terms.depth, call.terms.classes, call.terms.depth,
          call.weight_packed};
}

// Over the four lanes that share a row.
__device__ __forceinline__ float RowSum(float value) {
  value += __shfl_xor_sync(0xffffffffu, value, 1);
  return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

__device__ __forceinline__ float RowMaximum(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

template <typename T>
struct LogitsPass {
  using Product = cuda::Product<T, false, false>;
  using Sums = typename Product::Sums;

  // From products to logits; what a lane's 8 classes of each of its 8 rows add up to goes to parts[row][warp's column].
  static __device__ __forceinline__ void Finish(const Call& call, const Chunk& chunk, int64_t first_token,
                                                int64_t first_class, Sums& c, Part (&parts)[kTile][4]) {
    const Terms& t = call.terms;
    float bias[8] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int64_t at = first_class + Product::Column(e / 2, e % 2);
      if (call.bias != nullptr && at < t.classes) bias[e] = tftoolkit::Load(static_cast<const T*>(call.bias)[at]);
    }
    const int left = static_cast<int>(min(t.classes - first_class, kTile));
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int row = Product::Row(r / 2, r % 2);
      const int64_t token = first_token + row;
      const bool inside = token < chunk.count;
      const int64_t label = inside ? call.tokens[chunk.first + token].label - first_class : -1;
      float top = -std::numeric_limits<float>::infinity();
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        float& logit = c[r / 2][e / 2][r % 2 * 2 + e % 2];
        logit += bias[e];
        if (t.softcap > 0) logit = t.softcap * tanhf(logit / t.softcap);
        const int at = Product::Column(e / 2, e % 2);
        if (at == label) call.own[token] = logit;
        if (at < left) top = fmaxf(top, logit);  // a NaN may get lost here; the sum keeps it
      }
      top = RowMaximum(top);
      Part part{std::isfinite(top) ? top : 0, 0, 0, 0};
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (Product::Column(e / 2, e % 2) >= left) continue;
        const float centred = c[r / 2][e / 2][r % 2 * 2 + e % 2] - part.shift;
        part.sum += tftoolkit::Exp(centred);
        if (t.smoothing == 0) continue;
        const float weight = t.ClassWeight(first_class + Product::Column(e / 2, e % 2));
        part.total += weight * centred;
        part.weight += weight;
      }
      part = {part.shift, RowSum(part.sum), RowSum(part.total), RowSum(part.weight)};
      if (Product::Lane() % 4 == 0) parts[row][Product::FirstColumn() / 32] = part;
      if (inside && call.logits != nullptr) {
        float* to = call.logits + token * call.step + first_class;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* pair = &c[r / 2][j][r % 2 * 2];
          *reinterpret_cast<float2*>(to + Product::Column(j, 0)) = make_float2(pair[0], pair[1]);
        }
      }
    }
  }

  static __device__ __forceinline__ void Run(const Call& call, const Chunk& chunk, int64_t first_token, int64_t tile) {
    __shared__ Part parts[kTile][4];
    Sums c = {};
    Product::Add(InputsOf<T>(call, chunk), first_token, WeightOf<T>(call), tile * kTile, 0, call.terms.depth, c);
    Finish(call, chunk, first_token, tile * kTile, c, parts);
    __syncthreads();
    const int64_t token = first_token + threadIdx.x;
    if (threadIdx.x >= kTile || token >= chunk.count) return;
    Part all = parts[threadIdx.x][0];
    for (int i = 1; i < 4; ++i) tftoolkit::Join(all, parts[threadIdx.x][i], call.terms.smoothing != 0);
    call.parts[token * call.tiles + tile] = all;
  }
};

// Neighbours share their classes, so that the weight is read from memory once.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) LogitsKernel(Call call, Chunk chunk, int64_t work) {
  const int64_t rows = (chunk.count + kTile - 1) / kTile;
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    LogitsPass<T>::Run(call, chunk, i % rows * kTile, i / rows);
  }
}

template <typename T>
ffi::Error LaunchLogits(cudaStream_t stream, const Call& call, const Chunk& chunk) {
  const int64_t work = cuda::Ceil(chunk.count, kTile) * call.tiles;
  return cuda::LaunchProduct<typename LogitsPass<T>::Product>(LogitsKernel<T>, work, stream, call, chunk, work);
}

}  // namespace gpu

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_LOGITS_H_
