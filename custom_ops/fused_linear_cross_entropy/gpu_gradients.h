// From the logits of a chunk to the gradients, on CUDA; see fused_linear_cross_entropy.cu.

#ifndef TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_GRADIENTS_H_
#define TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_GRADIENTS_H_

#include "gpu_logits.h"

namespace gpu {

// Gradients by the logits of a chunk, in T at the begin of the memory of each token's logits; 0 behind the classes.
template <typename T>
__device__ __forceinline__ cuda::Matrix<T> LogitGradients(const Call& call, const Chunk& chunk) {
  const int64_t step = call.step * static_cast<int64_t>(sizeof(float) / sizeof(T));
  return {reinterpret_cast<const T*>(call.logits), step, chunk.count, call.step, true};
}

// Stored at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// Gradients take the place of the logits; a block for each token. Those of 16 bits overtake no logits that are still
// to be read: the barrier stands between loads and stores, and what is stored lies before what is loaded next.
template <typename T>
__global__ void __launch_bounds__(kThreads) LogitGradientsKernel(Call call, Chunk chunk) {
  const Terms& t = call.terms;
  const float up = UnitOf(chunk.largest).up;
  for (int64_t token = blockIdx.x; token < chunk.count; token += gridDim.x) {
    const Factors f = call.factors[token];
    const float scale = f.scale * f.inverse;
    const int64_t label = call.tokens[chunk.first + token].label;
    float* row = call.logits + token * call.step;
    for (int64_t first = 0; first < call.step; first += 4 * kThreads) {
      const int64_t at = first + 4 * threadIdx.x;
      float4 loaded = make_float4(0, 0, 0, 0);
      if (at < call.step) loaded = *reinterpret_cast<const float4*>(row + at);
      __syncthreads();
      if (at >= call.step) continue;
      const float logits[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
      Four<T> four;
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        float gradient = 0;
        if (at + x < t.classes) {
          gradient = tftoolkit::Exp(logits[x] - f.shift) * scale;
          if (t.smoothing != 0) gradient -= f.even * t.ClassWeight(at + x);
          if (at + x == label) gradient -= f.own;
          if (t.softcap > 0) gradient *= 1 - (logits[x] / t.softcap) * (logits[x] / t.softcap);
        }
        four.at[x] = tftoolkit::Store<T>(gradient * up);
      }
      *reinterpret_cast<Four<T>*>(reinterpret_cast<T*>(row) + at) = four;
    }
  }
}

// What a part of the classes gives to a tile of the gradients by the inputs.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2) InputGradientsKernel(Call call, Chunk chunk, Into into, int64_t work) {
  using Product = cuda::Product<T, false, true>;
  const int64_t rows = (chunk.count + kTile - 1) / kTile, depth = call.terms.depth;
  const int64_t columns = (depth + kTile - 1) / kTile;
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const int64_t column = i % columns * kTile, token = i / columns % rows * kTile, part = i / columns / rows;
    typename Product::Sums c = {};
    Product::Add(LogitGradients<T>(call, chunk), token, WeightOf<T>(call), column, part * into.part,
                 min((part + 1) * into.part, call.terms.classes), c);
    float* to = into.partial + part * chunk.count * depth;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int64_t row = token + Product::Row(r / 2, r % 2);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int64_t at = column + Product::Column(e / 2, e % 2);
        if (row < chunk.count && at < depth) to[row * depth + at] = c[r / 2][e / 2][r % 2 * 2 + e % 2];
      }
    }
  }
}

// Sums over the parts, in their order, to the rows of the tokens.
template <typename T>
__global__ void __launch_bounds__(kThreads) StoreInputGradientsKernel(Call call, Chunk chunk, Into into) {
  const int64_t depth = call.terms.depth, size = chunk.count * depth;
  const float down = UnitOf(chunk.largest).down;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size; i += stride) {
    float sum = 0;
    for (int64_t part = 0; part < into.parts; ++part) sum += into.partial[part * size + i];
    const int64_t row = call.tokens[chunk.first + i / depth].row;
    static_cast<T*>(into.dinputs)[row * depth + i % depth] = tftoolkit::Store<T>(sum * down);
  }
}

// Adds what a chunk gives to an element of a gradient to the sum, or, of the last chunk, stores it in T.
template <typename T>
__device__ __forceinline__ void AddChunk(const Into& into, float value, int64_t at, float* sums, void* result) {
  if (!into.first) value += sums[at];
  if (into.last) {
    static_cast<T*>(result)[at] = tftoolkit::Store<T>(value);
  } else {
    sums[at] = value;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) WeightGradientsKernel(Call call, Chunk chunk, Into into, int64_t work) {
  using Product = cuda::Product<T, true, true>;
  const int64_t depth = call.terms.depth, columns = (depth + kTile - 1) / kTile;
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) {
    const int64_t column = i % columns * kTile, first_class = i / columns * kTile;
    typename Product::Sums c = {};
    Product::Add(LogitGradients<T>(call, chunk), first_class, InputsOf<T>(call, chunk), column, 0, chunk.count, c);
    const float down = UnitOf(chunk.largest).down;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const int64_t row = first_class + Product::Row(r / 2, r % 2);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int64_t at = column + Product::Column(e / 2, e % 2);
        if (row >= call.terms.classes || at >= depth) continue;
        AddChunk<T>(into, c[r / 2][e / 2][r % 2 * 2 + e % 2] * down, row * depth + at, into.sums, into.dweight);
      }
    }
  }
}

// A block for 32 classes: each warp sums some of the tokens up, which is quicker and more exact than one sum of all.
template <typename T>
__global__ void __launch_bounds__(kThreads) BiasGradientKernel(Call call, Chunk chunk, Into into) {
  constexpr int kWarps = kThreads / cuda::kWarp;
  __shared__ float sums[kWarps][cuda::kWarp];
  const cuda::Matrix<T> gradients = LogitGradients<T>(call, chunk);
  const int lane = threadIdx.x % cuda::kWarp, warp = threadIdx.x / cuda::kWarp;
  const float down = UnitOf(chunk.largest).down;
  for (int64_t first = int64_t{blockIdx.x} * cuda::kWarp; first < call.terms.classes;
       first += int64_t{gridDim.x} * cuda::kWarp) {
    float sum = 0;
#pragma unroll 8
    for (int64_t token = warp; token < chunk.count; token += kWarps) {
      sum += tftoolkit::Load(gradients.Row(token)[first + lane]);
    }
    __syncthreads();  // the sums may still be in use for the previous classes
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || first + lane >= call.terms.classes) continue;
    for (int i = 1; i < kWarps; ++i) sum += sums[i][lane];
    AddChunk<T>(into, sum * down, first + lane, into.bias_sums, into.dbias);
  }
}

template <typename T>
ffi::Error LaunchGradients(cudaStream_t stream, const Call& call, const Chunk& chunk, const Into& into) {
  const Terms& t = call.terms;
  const int64_t columns = cuda::Ceil(t.depth, kTile), tokens = cuda::Ceil(chunk.count, kTile);
  const auto blocks = [](int64_t items, int64_t of_block) {
    return tftoolkit::GridBlocks(cuda::Ceil(items, of_block), int64_t{1} << 20);
  };
  LogitGradientsKernel<T><<<tftoolkit::GridBlocks(chunk.count, kTokens), kThreads, 0, stream>>>(call, chunk);
  if (into.dbias != nullptr)
    BiasGradientKernel<T><<<blocks(t.classes, cuda::kWarp), kThreads, 0, stream>>>(call, chunk, into);
  if (ffi::Error failed = cuda::Launched(); failed.failure() || t.depth == 0) return failed;
  const int64_t of_inputs = into.parts * tokens * columns, of_weight = call.tiles * columns;
  if (ffi::Error failed = cuda::LaunchProduct<cuda::Product<T, false, true>>(InputGradientsKernel<T>, of_inputs, stream,
                                                                             call, chunk, into, of_inputs);
      failed.failure()) {
    return failed;
  }
  StoreInputGradientsKernel<T><<<blocks(chunk.count * t.depth, kThreads), kThreads, 0, stream>>>(call, chunk, into);
  return cuda::LaunchProduct<cuda::Product<T, true, true>>(WeightGradientsKernel<T>, of_weight, stream, call, chunk,
                                                           into, of_weight);
}

}  // namespace gpu

#endif  // TFTOOLKIT_FUSED_LINEAR_CROSS_ENTROPY_GPU_GRADIENTS_H_
