// The forward pass on CUDA; see flash_attention.cu.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_FORWARD_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_FORWARD_H_

#include "gpu_scores.h"
#include "gpu_tiles.h"
#include "tftoolkit/grid.h"

namespace gpu {

// A tile of the rows that share a head of k and v, over all keys or over a part of them.
template <typename T, int kDepth>
struct Forward {
  static constexpr int kRows = kForwardRows, kThreads = kWarp * kWarps;
  static constexpr int kKeys = kOnTensorCores<T> ? (kDepth > 128 ? 32 : 64) : (kDepth > 128 ? 16 : 32);
  static constexpr int kSteps = kKeys / 8, kStep = kStride<T, kDepth>;
  using Products = float[kSteps][4];
  using Sums = float[kDepth / 8][4];

  struct alignas(16) Memory {
    T q[kRows * kStep];
    T stages[2][2][kKeys * kStep];                    // of keys and values
    float exchange[kWarps][kExchange<T, kKeys> + 1];  // no array may be empty
  };

  static __device__ Memory& Shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return *reinterpret_cast<Memory*>(memory);
  }

  // Two rows of a lane: what they are, the largest score so far, this lane's share of the sum.
  struct Lanes {
    Row rows[2];
    float top[2], sum[2];
  };

  static __device__ void Run(const ForwardCall& call, const Tiling& tiling, int64_t index) {
    Memory& memory = Shared();
    const Shape& p = call.common.shape;
    const int64_t tiles = tiling.tiles(), split = index % call.splits, kv = index / call.splits / tiles;
    int64_t first_row;
    const Sequence s = call.common.all.At(tiling.Find(index / call.splits % tiles, &first_row));
    const int64_t count = min(int64_t{kRows}, p.rows(s) - first_row);
    if (count <= 0) return;
    Lanes lanes;
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      lanes.rows[i] = row < count ? SharedRow(p, s, kv, first_row + row) : NoRow();
      lanes.top[i] = MinusInfinity();
      lanes.sum[i] = 0;
    }
    Range seen = SeenByRows(p, s, first_row, first_row + count);
    seen = {max(seen.begin, split * call.part), min(seen.end, (split + 1) * call.part)};
    for (Row& row : lanes.rows) row.end = min(int64_t{row.end}, seen.end);  // the last tile reaches into the next part
    if (seen.begin < seen.end) {
      LoadTile<T, kRows, kDepth, kThreads>(memory.q, static_cast<const T*>(p.q), p.depth, call.common.q_aligned, 0,
                                           count, [&](int row) { return p.place(s, kv, first_row + row) * p.depth; });
      LoadKeys(call.common, s, kv, seen.begin, seen.end, memory.stages[0]);
    }
    tftoolkit::CommitCopies();
    const Range own = SeenByWarp(p, s, first_row, count);
    Sums acc = {};
    int stage = 0;
    for (int64_t key = seen.begin; key < seen.end; key += kKeys, stage ^= 1) {
      const int64_t next = key + kKeys;
      if (next < seen.end) LoadKeys(call.common, s, kv, next, seen.end, memory.stages[stage ^ 1]);
      tftoolkit::CommitCopies();
      tftoolkit::WaitForCopies<1>();
      __syncthreads();
      if (key < own.end && next > own.begin) {
        Products scores = {};
        MultiplyTransposed<T, kKeys, kDepth>(memory.q + Warp() * 16 * kStep, memory.stages[stage][0], p.depth, scores);
        Softmax(call.common, static_cast<int>(key), lanes, scores, acc);
        MultiplyWeights<T, kKeys, kDepth, kDepth>(scores, memory.stages[stage][1], p.value_depth, acc,
                                                  memory.exchange[Warp()]);
      }
      __syncthreads();  // before the stage is loaded anew
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float total = RowSum(lanes.sum[i]);
      if (lanes.rows[i].place < 0) continue;
      if (call.splits == 1) {
        StoreRow(call, lanes.rows[i].place, lanes.top[i], total, acc, i);
      } else {
        StorePartial(call, split * call.places + lanes.rows[i].place, lanes.top[i], total, acc, i);
      }
    }
  }

  // Keys and values from `key` on; of `end` and behind, zeros: zero times NaN is NaN.
  static __device__ __forceinline__ void LoadKeys(const Common& c, const Sequence& s, int64_t kv, int64_t key,
                                                  int64_t end, T (&stage)[2][kKeys * kStep]) {
    const Shape& p = c.shape;
    const int64_t first = p.kv_place(s, kv, key), heads = p.kv_heads;
    const int depth = p.depth, value_depth = p.value_depth;
    LoadTile<T, kKeys, kDepth, kThreads>(stage[0], static_cast<const T*>(p.k), depth, c.k_aligned, 0, end - key,
                                         [=](int row) { return (first + row * heads) * depth; });
    LoadTile<T, kKeys, kDepth, kThreads>(stage[1], static_cast<const T*>(p.v), value_depth, c.v_aligned, 0, end - key,
                                         [=](int row) { return (first + row * heads) * value_depth; });
  }

  // One step of the online softmax (Milakov & Gimelshein 2018): products become powers relative to the largest score
  // so far.
  static __device__ __forceinline__ void Softmax(const Common& c, int key, Lanes& lanes, Products& scores, Sums& acc) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float high = lanes.top[i];
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& score = scores[j][2 * i + x];
          float slope;
          score = Score<T>(c, lanes.rows[i], key + 8 * j + Pair() + x, score, &slope);
          high = fmaxf(high, score);
        }
      }
      high = RowMaximum(high);
      const float base = high == MinusInfinity() ? 0.0f : high;  // nothing seen yet: infinity minus infinity
      const float alpha = exp2f(lanes.top[i] - base);
      float total = 0;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
#pragma unroll
        for (int x = 0; x < 2; ++x) {
          float& score = scores[j][2 * i + x];
          score = exp2f(__fadd_rn(score, -base));
          total += score;
        }
      }
      lanes.top[i] = high;
      lanes.sum[i] = lanes.sum[i] * alpha + total;
#pragma unroll
      for (int j = 0; j < kDepth / 8; ++j) acc[j][2 * i] *= alpha, acc[j][2 * i + 1] *= alpha;
    }
  }

  static __device__ __forceinline__ void StoreRow(const ForwardCall& call, int64_t place, float top, float total,
                                                  const Sums& acc, int i) {
    const float inverse = StoreStats(call.outputs, place, top, total, Lane() % 4 == 0);
    const int depth = call.common.shape.value_depth;
    T* o = static_cast<T*>(call.outputs.o) + place * depth;
#pragma unroll
    for (int j = 0; j < kDepth / 8; ++j) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int column = 8 * j + Pair() + x;
        if (column < depth) o[column] = Store<T>(acc[j][2 * i + x] * inverse);
      }
    }
  }

  static __device__ __forceinline__ void StorePartial(const ForwardCall& call, int64_t place, float top, float total,
                                                      const Sums& acc, int i) {
    const int depth = call.common.shape.value_depth;
    float* to = call.partial + place * (depth + 2);
    if (Lane() % 4 == 0) to[depth] = top, to[depth + 1] = total;
#pragma unroll
    for (int j = 0; j < kDepth / 8; ++j) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        const int column = 8 * j + Pair() + x;
        if (column < depth) to[column] = acc[j][2 * i + x];
      }
    }
  }
};

template <typename T, int kDepth>
__global__ void __launch_bounds__(Forward<T, kDepth>::kThreads)
    ForwardKernel(ForwardCall call, Tiling tiling, int64_t work) {
  // The last tiles first: with a causal mask they see the most.
  for (int64_t i = work - 1 - blockIdx.x; i >= 0; i -= gridDim.x) Forward<T, kDepth>::Run(call, tiling, i);
}

template <typename T>
cudaError_t LaunchForward(cudaStream_t stream, const ForwardCall& call) {
  const Shape& p = call.common.shape;
  return WithDepth(p, [&](auto depth) {
    using Pass = Forward<T, decltype(depth)::value>;
    const Tiling tiling = QueryTiles(call.common.all, p.group(), Pass::kRows);
    const int64_t work = tiling.tiles() * p.kv_heads * call.splits;
    if (work == 0) return cudaSuccess;
    constexpr size_t kBytes = sizeof(typename Pass::Memory);
    const auto kernel = ForwardKernel<T, decltype(depth)::value>;
    if (const cudaError_t error = AllowShared(kernel, kBytes); error != cudaSuccess) return error;
    kernel<<<tftoolkit::GridBlocks(work, INT32_MAX), Pass::kThreads, kBytes, stream>>>(call, tiling, work);
    return cudaGetLastError();
  });
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_FORWARD_H_
