// The backward pass on CUDA, after delta: one kernel each for dk and dv, dq, and the bias' gradient; see
// flash_attention.cu.

#ifndef TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_
#define TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_

#include "gpu_gradients.h"
#include "gpu_keys.h"
#include "tftoolkit/grid.h"

namespace gpu {

// dq of a tile of the rows that share a head of k and v, over all keys.
template <typename T, int kDepth>
struct QueriesPass : Backward<T, kDepth> {
  using B = Backward<T, kDepth>;

  static __device__ void Run(const BackwardCall& call, const Tiling& tiling, int64_t index) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const int64_t tiles = tiling.tiles(), kv = index / tiles;
    int64_t first_row;
    const Sequence s = call.common.all.At(tiling.Find(index % tiles, &first_row));
    const int64_t count = min(int64_t{B::kRows}, p.rows(s) - first_row);
    if (count <= 0) return;
    Row rows[2];
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      rows[i] = row < count ? B::WithStats(call, SharedRow(p, s, kv, first_row + row)) : NoRow();
    }
    const Range seen = SeenByRows(p, s, first_row, first_row + count);
    const Range own = SeenByWarp(p, s, first_row, count);
    float dq[kDepth / 8][4] = {};
    if (seen.begin < seen.end) {
      B::template LoadQueries<B::kRows>(memory.kept[0], memory.kept[1], call, count,
                                        [&](int row) { return p.place(s, kv, first_row + row); });
      auto& first = memory.stages[0];
      B::template LoadKeys<B::kOthers>(first[0], first[1], call, s, kv, seen.begin, seen);
    }
    tftoolkit::CommitCopies();
    int stage = 0;
    for (int64_t key = seen.begin; key < seen.end; key += B::kOthers, stage ^= 1) {
      auto &here = memory.stages[stage], &next = memory.stages[stage ^ 1];
      if (key + B::kOthers < seen.end) {
        B::template LoadKeys<B::kOthers>(next[0], next[1], call, s, kv, key + B::kOthers, seen);
      }
      tftoolkit::CommitCopies();
      tftoolkit::WaitForCopies<1>();
      __syncthreads();
      if (key < own.end && key + B::kOthers > own.begin) {
        typename B::Products gradients = {};
        B::ScoreGradients(call, rows, static_cast<int>(key), memory.kept[0], memory.kept[1], here[0], here[1], true,
                          gradients);
        MultiplyWeights<T, B::kOthers, kDepth, kDepth>(gradients, here[0], p.depth, dq, memory.exchange[Warp()]);
      }
      __syncthreads();  // before the stage is loaded anew
    }
    const int64_t at[2] = {rows[0].place < 0 ? -1 : rows[0].place * p.depth,
                           rows[1].place < 0 ? -1 : rows[1].place * p.depth};
    B::template StoreRows<kDepth>(dq, p.scale, p.depth, at, static_cast<T*>(call.dq));
  }
};

// The bias' gradient, for a tile of its queries (or its only one) and keys: the sum over all that it was broadcast
// along, sequence by sequence, head by head, query by query. Sums may be long: `lost` is what rounding took from them
// (Kahan 1965).
template <typename T, int kDepth>
struct BiasPass : Backward<T, kDepth> {
  using B = Backward<T, kDepth>;

  static __device__ __host__ int64_t RowTiles(const BackwardCall& call) {
    return (call.bias_queries + B::kRows - 1) / B::kRows;
  }
  static __device__ __host__ int64_t KeyTiles(const BackwardCall& call) {
    return (call.common.all.keys + B::kOthers - 1) / B::kOthers;
  }

  static __device__ void Run(const BackwardCall& call, int64_t index) {
    const Sequences& all = call.common.all;
    const int64_t key = index % KeyTiles(call) * B::kOthers, place = index / KeyTiles(call);
    const int64_t row = place % RowTiles(call) * B::kRows, vector = place / RowTiles(call);
    const int64_t head = vector % call.bias_heads, batch = vector / call.bias_heads;
    const bool over_batch = call.bias_batch == 1, over_heads = call.bias_heads == 1, over_rows = call.bias_queries == 1;
    typename B::Products sums = {}, lost = {};
    for (int64_t b = over_batch ? 0 : batch; b < (over_batch ? all.count : batch + 1); ++b) {
      for (int64_t h = over_heads ? 0 : head; h < (over_heads ? call.common.shape.heads : head + 1); ++h) {
        const int64_t end = over_rows ? all.queries : min(row + B::kRows, all.queries);
        for (int64_t query = over_rows ? 0 : row; query < end; query += B::kRows) {
          AddTile(call, all.At(b), h, query, key, sums, lost);
        }
      }
    }
    T* to = static_cast<T*>(call.dbias) + vector * call.bias_queries * all.keys + key;
    const int columns = static_cast<int>(min(int64_t{B::kOthers}, all.keys - key));
    if (over_rows) {
      StoreSum(sums, columns, to);
      return;
    }
    int64_t at[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t own = row + Warp() * 16 + Group() + 8 * i;
      at[i] = own < call.bias_queries ? own * all.keys : -1;
    }
    B::template StoreRows<B::kOthers>(sums, 1.0f, columns, at, to);
  }

  static __device__ __forceinline__ void AddTile(const BackwardCall& call, const Sequence& s, int64_t head,
                                                 int64_t query, int64_t key, typename B::Products& sums,
                                                 typename B::Products& lost) {
    auto& memory = B::Shared();
    const Shape& p = call.common.shape;
    const int64_t count = min(int64_t{B::kRows}, s.queries - query);
    Range seen = SeenBy(p, s, query, query + count);
    seen = {max(seen.begin, key), min(seen.end, key + B::kOthers)};
    if (seen.begin >= seen.end) return;
    const int64_t first = (s.first_query + query) * p.heads + head, heads = p.heads;
    B::template LoadQueries<B::kRows>(memory.kept[0], memory.kept[1], call, count,
                                      [=](int row) { return first + row * heads; });
    auto& keys = memory.stages[0];
    B::template LoadKeys<B::kOthers>(keys[0], keys[1], call, s, head / p.group(), key, seen);
    tftoolkit::CommitCopies();
    Row rows[2];
    for (int i = 0; i < 2; ++i) {
      const int row = Warp() * 16 + Group() + 8 * i;
      rows[i] = row < count ? B::WithStats(call, RowOf(p, s, head, query + row)) : NoRow();
    }
    tftoolkit::WaitForCopies<0>();
    __syncthreads();
    typename B::Products gradients = {};
    B::ScoreGradients(call, rows, static_cast<int>(key), memory.kept[0], memory.kept[1], keys[0], keys[1], false,
                      gradients);
#pragma unroll
    for (int j = 0; j < B::kSteps; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float more = gradients[j][e] - lost[j][e], sum = sums[j][e] + more;
        lost[j][e] = (sum - sums[j][e]) - more;
        sums[j][e] = sum;
      }
    }
    __syncthreads();  // before the tiles are loaded anew
  }

  // The sum of the block's rows, in one.
  static __device__ __forceinline__ void StoreSum(const typename B::Products& sums, int columns, T* to) {
    __shared__ float parts[B::kWarps][B::kOthers];
#pragma unroll
    for (int j = 0; j < B::kSteps; ++j) {
#pragma unroll
      for (int x = 0; x < 2; ++x) {
        float sum = sums[j][x] + sums[j][2 + x];
        for (int offset = 4; offset < kWarp; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        if (Group() == 0) parts[Warp()][8 * j + Pair() + x] = sum;
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < columns; i += B::kThreads) {
      float sum = 0;
      for (int warp = 0; warp < B::kWarps; ++warp) sum += parts[warp][i];
      to[i] = Store<T>(sum);
    }
    __syncthreads();  // before the array is used again
  }
};

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads)
    KeysKernel(BackwardCall call, Tiling tiling, int slices, int64_t work) {
  // The first tiles first: with a causal mask they are seen by the most.
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) KeysPass<T, kDepth>::Run(call, tiling, slices, i);
}

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads)
    QueriesKernel(BackwardCall call, Tiling tiling, int64_t work) {
  for (int64_t i = work - 1 - blockIdx.x; i >= 0; i -= gridDim.x) QueriesPass<T, kDepth>::Run(call, tiling, i);
}

template <typename T, int kDepth>
__global__ void __launch_bounds__(Backward<T, kDepth>::kThreads, 1) BiasKernel(BackwardCall call, int64_t work) {
  for (int64_t i = blockIdx.x; i < work; i += gridDim.x) BiasPass<T, kDepth>::Run(call, i);
}

template <typename T, int kDepth>
cudaError_t LaunchBackwardOfDepth(cudaStream_t stream, const BackwardCall& call) {
  using B = Backward<T, kDepth>;
  constexpr size_t kBytes = sizeof(typename B::Memory);
  const Shape& p = call.common.shape;
  cudaError_t error = cudaSuccess;
  const auto launch = [&](auto kernel, int64_t work, auto... arguments) {
    if (work == 0 || error != cudaSuccess) return;
    if (error = AllowShared(kernel, kBytes); error != cudaSuccess) return;
    kernel<<<tftoolkit::GridBlocks(work, INT32_MAX), B::kThreads, kBytes, stream>>>(call, arguments..., work);
    error = cudaGetLastError();
  };
  const Tiling keys = KeyTiles(call.common.all, B::kRows);
  const Tiling rows = QueryTiles(call.common.all, p.group(), B::kRows);
  constexpr int kColumns = KeysPass<T, kDepth>::kColumns;
  const int slices = std::max<int64_t>(1, (std::max(p.depth, p.value_depth) + kColumns - 1) / kColumns);
  launch(KeysKernel<T, kDepth>, keys.tiles() * p.kv_heads * slices, keys, slices);
  launch(QueriesKernel<T, kDepth>, rows.tiles() * p.kv_heads, rows);
  if (call.dbias != nullptr) {
    using Pass = BiasPass<T, kDepth>;
    const int64_t vectors = call.bias_batch * call.bias_heads;
    launch(BiasKernel<T, kDepth>, vectors * Pass::RowTiles(call) * Pass::KeyTiles(call));
  }
  return error;
}

template <typename T>
cudaError_t LaunchBackward(cudaStream_t stream, const BackwardCall& call) {
  return WithDepth(call.common.shape,
                   [&](auto depth) { return LaunchBackwardOfDepth<T, decltype(depth)::value>(stream, call); });
}

}  // namespace gpu

#endif  // TFTOOLKIT_FLASH_ATTENTION_GPU_BACKWARD_H_
